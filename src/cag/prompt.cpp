// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include <modicum/base/error.hpp>
#include <modicum/cag/prompt.hpp>

namespace modicum::cag {
namespace {

/// Beginnings of questions that tokenizers treat differently.
constexpr std::string_view kProbes[] = {"When may I?", "what", "1", "12:30", "\"So", "(a",
                                        "-",           "'s",   "É", "語",    "🙂"};

AddSpecial added(const PromptFormat& format, bool from_start) {
  return format.add_special_tokens && from_start ? AddSpecial::yes : AddSpecial::no;
}

std::size_t common_prefix(std::span<const TokenId> a, std::span<const TokenId> b) {
  const auto [end, unused] = std::mismatch(a.begin(), a.end(), b.begin(), b.end());
  return static_cast<std::size_t>(end - a.begin());
}

/// Whether encoding from token `token` (a special one, at byte `byte`) on gives the tokens that encoding all
/// does.
bool resumes(const Tokenizer& tokenizer, const PromptFormat& format, const SharedPrompt& prompt,
             std::size_t token, std::size_t byte) {
  const std::string tail = prompt.text.substr(byte) + std::string(kProbes[0]) + format.after_question;
  const Encoding all =
      tokenizer.encode(prompt.text + std::string(kProbes[0]) + format.after_question, added(format, true));
  const Encoding rest = tokenizer.encode(tail, AddSpecial::no);
  return all.ids.size() == token + rest.ids.size() &&
         std::equal(rest.ids.begin(), rest.ids.end(), all.ids.begin() + static_cast<std::ptrdiff_t>(token));
}

void find_resume_point(const Tokenizer& tokenizer, const PromptFormat& format, SharedPrompt& prompt) {
  for (std::size_t i = prompt.ids.size(); i-- > 0;) {
    if (!tokenizer.is_special(prompt.ids[i])) continue;
    if (prompt.documents.empty() || prompt.begins[i] < prompt.documents.back().text_end) return;
    if (!resumes(tokenizer, format, prompt, i, prompt.begins[i])) continue;
    prompt.resume_token = i;
    prompt.resume_byte = prompt.begins[i];
    return;
  }
}

void append_document(SharedPrompt& prompt, const Document& document) {
  prompt.text += "[" + document.name + "]\n";
  const std::size_t begin = prompt.text.size();
  prompt.text += document.text;
  prompt.documents.push_back({.text_begin = begin, .text_end = prompt.text.size()});
  prompt.text += "\n\n";
}

/// Adds an encoding of the text from `byte` on.
void append_tokens(SharedPrompt& prompt, const Encoding& encoding, std::size_t byte) {
  std::size_t reached = 0;
  for (std::size_t i = 0; i < encoding.ids.size(); ++i) {
    // Tokens that the post-processor added stand for no bytes; they count as standing where the text has got
    // to.
    if (encoding.offsets[i].end > encoding.offsets[i].begin) reached = encoding.offsets[i].begin;
    prompt.begins.push_back(byte + reached);
  }
  prompt.ids.insert(prompt.ids.end(), encoding.ids.begin(), encoding.ids.end());
}

/// Where to cut a text into parts of about `most` tokens: the last line end before the limit, or the limit
/// itself where a line is longer.
std::vector<std::pair<std::size_t, std::size_t>> parts_of(const Tokenizer& tokenizer, std::string_view text,
                                                          std::size_t most) {
  std::vector<std::pair<std::size_t, std::size_t>> parts;
  const Encoding encoding = tokenizer.encode(std::string(text), AddSpecial::no);
  std::size_t begin = 0;
  std::size_t token = 0;
  while (encoding.ids.size() - token > most) {
    const std::size_t limit = encoding.offsets[token + most].begin;
    std::size_t cut = text.rfind('\n', limit == 0 ? 0 : limit - 1);
    cut = cut == std::string_view::npos || cut + 1 <= begin ? limit : cut + 1;
    // Tokens of bytes can end within a character.
    while (cut > begin + 1 && (static_cast<unsigned char>(text[cut]) & 0xc0u) == 0x80u) --cut;
    if (cut <= begin) break;
    parts.emplace_back(begin, cut - begin);
    begin = cut;
    while (token < encoding.ids.size() && encoding.offsets[token].begin < begin) ++token;
  }
  if (begin < text.size()) parts.emplace_back(begin, text.size() - begin);
  return parts;
}

void find_document_tokens(SharedPrompt& prompt) {
  for (DocumentSpan& span : prompt.documents) {
    const auto token_at = [&](std::size_t byte) {
      const auto at = std::lower_bound(prompt.begins.begin(), prompt.begins.end(), byte);
      return static_cast<std::size_t>(at - prompt.begins.begin());
    };
    span.token_begin = token_at(span.text_begin);
    span.token_end = token_at(span.text_end);
  }
}

}  // namespace

SharedPrompt make_shared_prompt(const Tokenizer& tokenizer, const PromptFormat& format,
                                std::span<const Document> documents) {
  SharedPrompt prompt;
  prompt.text = format.before_documents;
  for (const Document& document : documents) append_document(prompt, document);
  prompt.text += format.before_question;
  Encoding encoding = tokenizer.encode(prompt.text, added(format, true));
  std::size_t stable = encoding.ids.size();
  for (const std::string_view probe : kProbes) {
    const Encoding whole =
        tokenizer.encode(prompt.text + std::string(probe) + format.after_question, added(format, true));
    stable = std::min(stable, common_prefix(encoding.ids, whole.ids));
  }
  encoding.ids.resize(stable);
  append_tokens(prompt, encoding, 0);
  prompt.segments = {{.token_begin = 0, .token_end = prompt.ids.size(), .document = {}}};
  find_document_tokens(prompt);
  find_resume_point(tokenizer, format, prompt);
  return prompt;
}

SharedPrompt make_block_prompt(const Tokenizer& tokenizer, const PromptFormat& format,
                               std::span<const Document> documents, std::size_t segment_tokens) {
  SharedPrompt prompt;
  prompt.text = format.before_documents;
  const auto add_segment = [&](const Encoding& encoding, std::size_t byte,
                               std::optional<std::size_t> document) {
    const std::size_t begin = prompt.ids.size();
    append_tokens(prompt, encoding, byte);
    if (prompt.ids.size() > begin) prompt.segments.push_back({begin, prompt.ids.size(), document});
  };
  add_segment(tokenizer.encode(prompt.text, added(format, true)), 0, std::nullopt);
  for (std::size_t i = 0; i < documents.size(); ++i) {
    const std::size_t begin = prompt.text.size();
    append_document(prompt, documents[i]);
    const std::string_view whole = std::string_view(prompt.text).substr(begin);
    for (const auto& [first, size] : parts_of(tokenizer, whole, segment_tokens)) {
      add_segment(tokenizer.encode(std::string(whole.substr(first, size)), AddSpecial::no), begin + first, i);
    }
  }
  find_document_tokens(prompt);
  prompt.resume_byte = prompt.text.size();
  prompt.resume_token = prompt.ids.size();
  return prompt;
}

std::vector<TokenId> question_ids(const Tokenizer& tokenizer, const PromptFormat& format,
                                  std::string_view resume_text, bool from_start,
                                  std::span<const TokenId> resume_ids, std::string_view question) {
  const std::size_t first = question.find_first_not_of(" \t\r\n");
  if (first == std::string_view::npos) {
    fail({.op = "cag.ask", .what = "question", .expected = "some text", .got = "none"});
  }
  question = question.substr(first, question.find_last_not_of(" \t\r\n") - first + 1);
  const std::string text = std::string(resume_text) + std::string(question) + format.after_question;
  Encoding encoding = tokenizer.encode(text, added(format, from_start));
  if (common_prefix(resume_ids, encoding.ids) != resume_ids.size()) {
    fail({.op = "cag.ask",
          .what = "question",
          .expected = "a beginning that leaves the cached tokens as they are",
          .got = "one that merges with them",
          .todo = "begin it with a letter"});
  }
  encoding.ids.erase(encoding.ids.begin(),
                     encoding.ids.begin() + static_cast<std::ptrdiff_t>(resume_ids.size()));
  return std::move(encoding.ids);
}

}  // namespace modicum::cag
