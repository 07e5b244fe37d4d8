// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include <modicum/base/error.hpp>
#include <modicum/search/phrases.hpp>

namespace modicum {
namespace {

constexpr std::size_t kBytes = 256;

std::uint8_t byte(char c) {
  return static_cast<std::uint8_t>(c);
}

char lower(char c) {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}

void add_once(std::vector<TokenId>& tokens, TokenId token) {
  const auto at = std::ranges::lower_bound(tokens, token);
  if (at == tokens.end() || *at != token) tokens.insert(at, token);
}

}  // namespace

Phrases::Phrases(const Tokenizer& tokenizer, std::size_t vocabulary, PhraseOptions options)
    : options_(std::move(options)) {
  const std::size_t count = options_.banned.size() + options_.required.size();
  const auto is_empty = [](const std::string& phrase) { return phrase.empty(); };
  if (count == 0 || options_.required.size() > 32 || std::ranges::any_of(options_.banned, is_empty) ||
      std::ranges::any_of(options_.required, is_empty)) {
    fail({.op = "phrases",
          .what = "phrases",
          .expected = "at least one, none of them empty, at most 32 required",
          .got = std::to_string(count) + ", " + std::to_string(options_.required.size()) + " required"});
  }
  nodes_.emplace_back();
  next_.assign(kBytes, 0);
  for (const std::string& phrase : options_.banned) nodes_[add(folded(phrase), nullptr)].is_banned = true;
  required_.resize(options_.required.size());
  for (std::size_t i = 0; i < required_.size(); ++i) {
    nodes_[add(folded(options_.required[i]), &required_[i].path)].met |= 1u << i;
    all_met_ |= 1u << i;
  }
  link();
  read_vocabulary(tokenizer, vocabulary);
  for (std::size_t i = 0; i < required_.size(); ++i) {
    plan(tokenizer, required_[i], options_.required[i]);
    units_ += required_[i].total;
  }
}

AllowedTokens Phrases::allowed(State state, AllowedScratch& scratch) const {
  scratch.wanted.clear();
  for (std::size_t i = 0; i < required_.size(); ++i) {
    if ((met(state) >> i & 1u) != 0) continue;
    for (const TokenId token : required_[i].wanted[matched(required_[i], node(state))]) {
      if (allows(state, token)) add_once(scratch.wanted, token);
    }
  }
  return {.kind = options_.banned.empty() ? AllowedTokens::Kind::all : AllowedTokens::Kind::check,
          .may_end = met(state) == all_met_,
          .wanted = scratch.wanted};
}

Constraint::State Phrases::advance(State state, TokenId token) const {
  Node at = node(state);
  std::uint32_t found = met(state);
  for (const char c : bytes(token)) {
    at = next_[at * kBytes + byte(c)];
    found |= nodes_[at].met;
  }
  return static_cast<State>(found) << 32 | at;
}

bool Phrases::allows(State state, TokenId token) const {
  Node at = node(state);
  for (const char c : bytes(token)) {
    at = next_[at * kBytes + byte(c)];
    if (nodes_[at].is_banned) return false;
  }
  return true;
}

std::size_t Phrases::progress(State state) const {
  std::size_t done = 0;
  std::size_t begun = 0;  // the end of the text can only be the beginning of one of them
  for (std::size_t i = 0; i < required_.size(); ++i) {
    const Required& r = required_[i];
    if ((met(state) >> i & 1u) != 0) {
      done += r.total;
    } else {
      begun = std::max(begun, std::min(r.units[matched(r, node(state))], r.total - 1));
    }
  }
  return done + begun;
}

std::string_view Phrases::bytes(TokenId token) const {
  const auto i = static_cast<std::size_t>(token);
  if (i + 1 >= token_offsets_.size()) return {};
  return std::string_view(token_bytes_).substr(token_offsets_[i], token_offsets_[i + 1] - token_offsets_[i]);
}

std::string Phrases::folded(std::string_view text) const {
  std::string result(text);
  if (options_.ignore_case) std::ranges::transform(result, result.begin(), lower);
  return result;
}

/// The node at the end of `phrase`; `path` gets those on the way, the root's included.
Phrases::Node Phrases::add(std::string_view phrase, std::vector<Node>* path) {
  Node at = 0;
  if (path != nullptr) path->push_back(at);
  for (const char c : phrase) {
    if (next_[at * kBytes + byte(c)] == 0) {
      next_[at * kBytes + byte(c)] = static_cast<Node>(nodes_.size());
      nodes_.push_back({.depth = nodes_[at].depth + 1});
      next_.resize(next_.size() + kBytes, 0);
    }
    at = next_[at * kBytes + byte(c)];
    if (path != nullptr) path->push_back(at);
  }
  return at;
}

/// Turns the trie into the automaton, breadth first: where a byte does not lead on, the suffix's way is
/// taken.
void Phrases::link() {
  std::vector<Node> waiting{0};
  for (std::size_t i = 0; i < waiting.size(); ++i) {
    const Node at = waiting[i];
    NodeInfo& info = nodes_[at];
    info.is_banned = info.is_banned || nodes_[info.suffix].is_banned;
    info.met |= nodes_[info.suffix].met;
    for (std::size_t b = 0; b < kBytes; ++b) {
      Node& child = next_[at * kBytes + b];
      const Node other = at == 0 ? 0 : next_[info.suffix * kBytes + b];
      if (child == 0) {
        child = other;
      } else {
        nodes_[child].suffix = other;
        waiting.push_back(child);
      }
    }
  }
}

void Phrases::read_vocabulary(const Tokenizer& tokenizer, std::size_t vocabulary) {
  token_offsets_.reserve(vocabulary + 1);
  token_offsets_.push_back(0);
  for (std::size_t i = 0; i < vocabulary; ++i) {
    token_bytes_ += folded(tokenizer.bytes_of(static_cast<TokenId>(i)));
    token_offsets_.push_back(token_bytes_.size());
  }
}

/// Which tokens lead on in a required phrase: those that the tokenizer writes it with, alone and after a
/// space, and from any other place the longest token that fits.
void Phrases::plan(const Tokenizer& tokenizer, Required& required, const std::string& phrase) const {
  const std::string text = folded(phrase);
  required.wanted.resize(text.size());
  required.units.assign(text.size(), 0);
  plan_tokens(tokenizer, required, phrase, phrase);
  plan_tokens(tokenizer, required, phrase, " " + phrase);
  std::vector<std::pair<std::size_t, TokenId>> longest(text.size(), {0, -1});
  for (TokenId t = 0; static_cast<std::size_t>(t) + 1 < token_offsets_.size(); ++t) {
    const std::string_view piece = bytes(t);
    if (piece.empty()) continue;
    for (std::size_t at = text.find(piece.front()); at != std::string::npos;
         at = text.find(piece.front(), at + 1)) {
      if (piece.size() > longest[at].first && text.compare(at, piece.size(), piece) == 0) {
        longest[at] = {piece.size(), t};
      }
    }
  }
  for (std::size_t at = 0; at < text.size(); ++at) {
    if (required.wanted[at].empty() && longest[at].second >= 0)
      add_once(required.wanted[at], longest[at].second);
  }
}

/// Notes the tokens of `text`, which is the phrase, perhaps with something before it that it is written with.
void Phrases::plan_tokens(const Tokenizer& tokenizer, Required& required, const std::string& phrase,
                          const std::string& text) const {
  const std::vector<TokenId> ids = tokenizer.encode(text, AddSpecial::no).ids;
  std::string whole;
  for (const TokenId id : ids) whole += bytes(id);
  if (!whole.ends_with(folded(phrase))) return;  // the tokenizer rewrites it
  const std::size_t before = whole.size() - phrase.size();
  std::size_t at = 0;
  std::size_t tokens = 0;
  for (const TokenId id : ids) {
    const std::size_t end = at + bytes(id).size();
    if (end > before) {  // a token that does not reach into the phrase is nothing to want
      const std::size_t from = at > before ? at - before : 0;
      add_once(required.wanted[from], id);
      ++tokens;
      for (std::size_t i = end - before; i < phrase.size(); ++i) required.units[i] = tokens;
    }
    at = end;
  }
  required.total = std::max<std::size_t>(tokens, 1);
}

/// How many bytes of the phrase the text ends with, fewer than all.
std::size_t Phrases::matched(const Required& required, Node at) const {
  while (nodes_[at].depth >= required.path.size() - 1 || required.path[nodes_[at].depth] != at) {
    at = nodes_[at].suffix;
  }
  return nodes_[at].depth;
}

}  // namespace modicum
