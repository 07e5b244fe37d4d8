// SPDX-License-Identifier: Apache-2.0
// The words by which questions and texts are compared.
#pragma once

#include <string>
#include <string_view>

#include "../text/unicode.hpp"

namespace modicum::cag {

enum class WordPart { none, letter, mark, alone };

/// Han, kana and bopomofo, written without spaces.
inline bool is_cjk(char32_t c) {
  const auto within = [c](char32_t first, char32_t last) { return c >= first && c <= last; };
  return within(0x3005, 0x312F) || within(0x31A0, 0x31BF) || within(0x31F0, 0x31FF) ||
         within(0x3400, 0x4DBF) || within(0x4E00, 0x9FFF) || within(0xF900, 0xFAFF) ||
         within(0xFF66, 0xFF9F) || within(0x1AFF0, 0x1B16F) || within(0x20000, 0x3FFFF);
}

inline WordPart word_part(char32_t c) {
  using enum text::Category;
  switch (static_cast<text::Category>(text::properties(c).category)) {
    case Lu:
    case Ll:
    case Lt:
    case Lm:
    case Lo:
    case Nd:
    case Nl:
    case No:
      return is_cjk(c) ? WordPart::alone : WordPart::letter;
    case Mn:
    case Mc:
    case Me:
      return WordPart::mark;
    default:
      return WordPart::none;
  }
}

inline void append_lowercase(std::string& word, char32_t c) {
  constexpr char32_t kFinalSigma = U'\u03C2', kSigma = U'\u03C3';
  const auto lower = text::lowercase(c);
  for (const char32_t l : lower) text::append_utf8(word, l);
  if (lower.empty()) text::append_utf8(word, c == kFinalSigma ? kSigma : c);
}

/// `text` in UTF-8 and NFC; `storage` holds it where it is not so already.
inline std::string_view composed(std::string_view text, std::string& storage) {
  if (text::find_invalid_utf8(text) != std::string_view::npos) {
    std::string valid;
    if (text::append_lossy(valid, text) > 0) valid += text::kReplacement;
    storage = std::move(valid);
    text = storage;
  }
  if (text::is_surely_nfc(text)) return text;
  std::string normal;
  for (const text::Change& change : text::normalize(text, text::NormalForm::nfc)) {
    text::append_utf8(normal, change.code_point);
  }
  storage = std::move(normal);
  return storage;
}

/// Calls `visit` with each word, which is valid for the call: runs of letters, digits and the marks that
/// follow them, of any script, composed and in lower case; Chinese and Japanese characters alone. (Greek's
/// final sigma is a sigma, as for case-insensitive comparison in Unicode.)
template <class Visit>
void for_each_word(std::string_view raw, const Visit& visit) {
  std::string storage;
  const std::string_view text = composed(raw, storage);
  std::string word;
  const auto finish = [&] {
    if (!word.empty()) visit(std::string_view(word));
    word.clear();
  };
  for (std::size_t at = 0; at < text.size();) {
    const char32_t c = text::next_code_point(text, at);
    const WordPart part = word_part(c);
    if (part == WordPart::none || part == WordPart::alone) finish();
    // A mark with nothing before it is part of no word.
    if (part == WordPart::none || (part == WordPart::mark && word.empty())) continue;
    append_lowercase(word, c);
    if (part == WordPart::alone) finish();
  }
  finish();
}

}  // namespace modicum::cag
