// SPDX-License-Identifier: Apache-2.0
// What Hugging Face `tokenizers` believes about code points, and walking over UTF-8.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace modicum::text {

/// In the order of scripts/generate_unicode_tables.py.
enum class Category : std::uint8_t {
  // clang-format off
  Lu, Ll, Lt, Lm, Lo, Mn, Mc, Me, Nd, Nl, No, Pc, Pd, Ps, Pe, Pi, Pf, Po,
  Sm, Sc, Sk, So, Zs, Zl, Zp, Cc, Cf, Cs, Co, Cn
  // clang-format on
};
inline constexpr int kCategories = 30;

enum PropertyFlag : std::uint8_t {
  kRegexSpace = 1,  ///< \s of the regex engine
  kRegexWord = 2,   ///< \w of the regex engine
  kWord = 4,     ///< \w of Rust's regex, which decides about `single_word` and the Whitespace pre-tokenizer
  kNumeric = 8,  ///< Rust's char::is_numeric
  kWhiteSpace = 16,   ///< Rust's char::is_whitespace
  kPunctuation = 32,  ///< the Punctuation pre-tokenizer's
};

struct PropertyRow {
  std::uint8_t category;
  std::uint8_t flags;
  std::uint8_t combining_class;
};

struct PropertyRun {
  std::uint32_t first;
  std::uint8_t row;
};

std::span<const PropertyRun> property_runs();
std::span<const PropertyRow> property_rows();
/// Index into `property_rows`.
std::uint8_t property_row(char32_t code_point);
const PropertyRow& properties(char32_t code_point);
inline bool has_flag(char32_t code_point, PropertyFlag flag) {
  return (properties(code_point).flags & flag) != 0;
}

/// Lower case, one to three code points; empty where it is the code point itself.
std::span<const char32_t> lowercase(char32_t code_point);

enum class NormalForm { nfc, nfd, nfkc, nfkd };

/// A code point of a normal form and how it came about: 0 stands for one code point of the input, 1 was
/// added, -n also swallowed the n code points that follow.
struct Change {
  char32_t code_point;
  int change;
};

std::vector<Change> normalize(std::string_view text, NormalForm form);
/// Whether NFC certainly leaves `text` as it is. False means that it may change.
bool is_surely_nfc(std::string_view text);

/// Reads the code point at `at`, which starts one, of valid UTF-8, and moves behind it.
inline char32_t next_code_point(std::string_view text, std::size_t& at) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(at);
  if (lead < 0x80) return text[at++];
  if (lead < 0xE0) {
    at += 2;
    return (lead & 0x1Fu) << 6 | (byte(at - 1) & 0x3Fu);
  }
  if (lead < 0xF0) {
    at += 3;
    return (lead & 0x0Fu) << 12 | (byte(at - 2) & 0x3Fu) << 6 | (byte(at - 1) & 0x3Fu);
  }
  at += 4;
  return (lead & 0x07u) << 18 | (byte(at - 3) & 0x3Fu) << 12 | (byte(at - 2) & 0x3Fu) << 6 |
         (byte(at - 1) & 0x3Fu);
}

inline bool is_continuation(char byte) {
  return (static_cast<unsigned char>(byte) & 0xC0) == 0x80;
}
inline std::size_t utf8_length(char32_t c) {
  return c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
}
/// Length of the character that starts at `at`.
inline std::size_t utf8_length_at(std::string_view text, std::size_t at) {
  const auto lead = static_cast<unsigned char>(text[at]);
  return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}
/// The last code point of `text`, which is not empty.
char32_t last_code_point(std::string_view text);

void append_utf8(std::string& out, char32_t code_point);
std::vector<char32_t> to_code_points(std::string_view text);
std::size_t count_code_points(std::string_view text);
bool is_ascii(std::string_view text);
/// Where the first ill-formed sequence begins, or `npos`.
std::size_t find_invalid_utf8(std::string_view text);

/// Appends bytes as UTF-8, each maximal ill-formed part as U+FFFD (what Rust's from_utf8_lossy and browsers
/// do). Returns how many bytes at the end are the beginning of a character that may still be completed; they
/// are not appended.
std::size_t append_lossy(std::string& out, std::string_view bytes);

inline constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

}  // namespace modicum::text
