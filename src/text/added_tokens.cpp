// SPDX-License-Identifier: Apache-2.0
#include "added_tokens.hpp"

#include <algorithm>
#include <limits>

#include <modicum/base/error.hpp>

#include "../base/quote.hpp"

namespace modicum::text {
namespace {

constexpr std::size_t kLongestToken = 4096;  // bytes; bounds the search, which is not linear in this

constexpr TokenId kMost = std::numeric_limits<TokenId>::max();

/// Where the white space at the end of `text` begins.
std::size_t trailing_space(std::string_view text) {
  while (!text.empty()) {
    const char32_t last = last_code_point(text);
    if (!has_flag(last, kWhiteSpace)) break;
    text.remove_suffix(utf8_length(last));
  }
  return text.size();
}

/// Where the white space at the beginning of `text` ends.
std::size_t leading_space(std::string_view text) {
  std::size_t end = 0;
  for (std::size_t at = 0; at < text.size() && has_flag(next_code_point(text, at), kWhiteSpace);) end = at;
  return end;
}

bool begins_with_word(std::string_view text) {
  std::size_t at = 0;
  return !text.empty() && has_flag(next_code_point(text, at), kWord);
}

bool ends_with_word(std::string_view text) {
  return !text.empty() && has_flag(last_code_point(text), kWord);
}

}  // namespace

void StringSet::add(std::string_view text, TokenId value) {
  std::uint32_t node = 0;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    const auto [found, fresh] =
        nodes_[node].next.try_emplace(byte, static_cast<std::uint32_t>(nodes_.size()));
    node = found->second;
    if (fresh) nodes_.emplace_back();
  }
  if (text.empty()) return;
  if (nodes_[node].value != Piece::kNone) {
    fail<FormatError>({.op = "tokenizer.load",
                       .what = "added token " + quote(text),
                       .expected = "a text of its own",
                       .got = "that of another token"});
  }
  nodes_[node].value = value;
  begins_[static_cast<unsigned char>(text[0])] = true;
}

bool StringSet::find(std::string_view text, std::size_t from, std::size_t& begin, std::size_t& end,
                     TokenId& value) const {
  for (begin = from; begin < text.size(); ++begin) {
    if (!begins_[static_cast<unsigned char>(text[begin])]) continue;
    bool found = false;
    std::uint32_t node = 0;
    for (std::size_t at = begin; at < text.size(); ++at) {
      const auto next = nodes_[node].next.find(static_cast<unsigned char>(text[at]));
      if (next == nodes_[node].next.end()) break;
      node = next->second;
      if (nodes_[node].value != Piece::kNone) {
        found = true;
        end = at + 1;
        value = nodes_[node].value;
      }
    }
    if (found) return true;
  }
  return false;
}

AddedTokens::Token AddedTokens::parse(const Json& json, const Normalizer* normalizer) {
  const JsonFields fields(json, "tokenizer.load", "added_tokens.");
  fields.integer("id", 0, std::numeric_limits<std::uint32_t>::max());
  const auto flag = [&](const char* name) {
    fields.at(name);
    return fields.boolean_or(name, false);
  };
  Token token{
      fields.text("content"), {}, flag("single_word"), flag("lstrip"), flag("rstrip"), flag("normalized"),
      flag("special")};
  if (token.content.size() > kLongestToken) {
    fields.refuse<Unsupported>("content", "at most " + std::to_string(kLongestToken) + " bytes");
  }
  token.normal = token.content;
  if (token.normalized && normalizer != nullptr) {
    NormalizedText text(token.content, 0);
    normalizer->apply(text);
    token.normal = text.text();
  }
  return token;
}

AddedTokens::AddedTokens(const Json& json, const Vocabulary& vocabulary, const Normalizer* normalizer) {
  if (json.is_null()) return;
  if (!json.is_array()) {
    fail<FormatError>(
        {.op = "tokenizer.load", .what = "added_tokens", .expected = "an array", .got = excerpt(json)});
  }
  auto next_id = static_cast<std::int64_t>(vocabulary.size());
  for (const Json& entry : json) {
    Token token = parse(entry, normalizer);
    if (token.content.empty()) continue;
    const auto known = find(token.content);
    const auto in_vocabulary = vocabulary.find(token.content);
    if (!known && !in_vocabulary && next_id > kMost) {
      fail<FormatError>({.op = "tokenizer.load", .what = "added_tokens", .expected = "fewer of them"});
    }
    const TokenId id = known ? *known : in_vocabulary ? *in_vocabulary : static_cast<TokenId>(next_id++);
    ids_[token.content] = id;
    if (token.special) special_.insert(token.content);
    // Also counts if the file lists the token once more without normalization.
    if (token.normal != token.content) written_[id] = token.normal;
    tokens_.insert_or_assign(id, std::move(token));
  }
  for (const auto& [id, token] : tokens_) (token.normalized ? normalized_ : plain_).add(token.normal, id);
}

std::optional<TokenId> AddedTokens::find(std::string_view content) const {
  const auto found = ids_.find(std::string(content));
  return found == ids_.end() ? std::nullopt : std::optional(found->second);
}

std::optional<std::string_view> AddedTokens::text(TokenId id) const {
  const auto found = tokens_.find(id);
  if (found == tokens_.end()) return std::nullopt;
  const auto written = written_.find(id);
  return std::string_view(written != written_.end() ? written->second : found->second.content);
}

std::vector<Piece> AddedTokens::matches(const NormalizedText* source, const StringSet& set) const {
  const std::string_view text = source->text();
  std::vector<Piece> out;
  const auto push = [&](std::size_t begin, std::size_t end, TokenId id) {
    if (begin < end) {
      out.push_back({source, static_cast<std::uint32_t>(begin), static_cast<std::uint32_t>(end), id});
    }
  };
  std::size_t covered = 0, begin = 0, end = 0;
  TokenId id = Piece::kNone;
  for (std::size_t from = 0; !set.empty() && set.find(text, from, begin, end, id);) {
    from = end;
    const Token& token = tokens_.at(id);
    if (token.single_word && (ends_with_word(text.substr(0, begin)) || begins_with_word(text.substr(end))))
      continue;
    if (token.lstrip) begin = std::max(trailing_space(text.substr(0, begin)), covered);
    if (token.rstrip) end += leading_space(text.substr(end));
    push(covered, begin, Piece::kNone);
    push(begin, end, id);
    covered = end;
  }
  push(covered, text.size(), Piece::kNone);
  return out;
}

void AddedTokens::cut(const NormalizedText* source, const StringSet& set, std::vector<Piece>& out) const {
  if (source->empty()) return;
  const std::vector<Piece> found = matches(source, set);
  out.insert(out.end(), found.begin(), found.end());
}

void AddedTokens::extract(Pieces& pieces, const Normalizer* normalizer) const {
  const NormalizedText* whole = &pieces.texts.front();
  std::vector<Piece> plain;
  cut(whole, plain_, plain);
  for (const Piece& piece : plain) {
    if (piece.added != Piece::kNone) {
      pieces.list.push_back(piece);
      continue;
    }
    NormalizedText part = whole->slice(piece.begin, piece.end);
    if (normalizer != nullptr) normalizer->apply(part);
    cut(pieces.hold(std::move(part)), normalized_, pieces.list);
  }
}

}  // namespace modicum::text
