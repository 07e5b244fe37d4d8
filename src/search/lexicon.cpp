// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <bit>

#include <modicum/base/error.hpp>

#include "../base/quote.hpp"
#include "lexicon_data.hpp"

namespace modicum {
namespace {

constexpr std::size_t kBlockWords = 8;  // of 64 nodes each

/// Entries that end before each block of words, and at last all.
std::vector<std::uint32_t> block_ranks(std::span<const std::uint64_t> ends) {
  std::vector<std::uint32_t> ranks;
  ranks.reserve(ends.size() / kBlockWords + 2);
  std::uint32_t count = 0;
  for (std::size_t i = 0; i < ends.size(); ++i) {
    if (i % kBlockWords == 0) ranks.push_back(count);
    count += static_cast<std::uint32_t>(std::popcount(ends[i]));
  }
  ranks.push_back(count);
  return ranks;
}

/// The place of the bit of `word` that `below` set bits precede.
std::size_t select_in_word(std::uint64_t word, std::size_t below) {
  for (; below > 0; --below) word &= word - 1;
  return static_cast<std::size_t>(std::countr_zero(word));
}

}  // namespace

Lexicon::Data::Data(LexiconArrays views, std::string tokenizer_fingerprint, std::string text_prefix,
                    std::shared_ptr<const void> keeper, MappedFile mapped)
    : arrays(views),
      tokenizer(std::move(tokenizer_fingerprint)),
      prefix(std::move(text_prefix)),
      owner(std::move(keeper)),
      file(std::move(mapped)),
      ranks(block_ranks(arrays.ends)) {
  TokenId largest = 0;  // a local, so that the loop runs in vectors
  for (const TokenId token : arrays.tokens) largest = std::max(largest, token);
  largest_token = largest;
}

std::size_t Lexicon::Data::rank(std::size_t node) const {
  const std::size_t word = node / 64, block = word / kBlockWords;
  std::size_t count = ranks[block];
  for (std::size_t i = block * kBlockWords; i < word; ++i) {
    count += static_cast<std::size_t>(std::popcount(arrays.ends[i]));
  }
  const std::uint64_t before = (std::uint64_t{1} << (node % 64)) - 1;
  return count + static_cast<std::size_t>(std::popcount(arrays.ends[word] & before));
}

std::size_t Lexicon::Data::select(std::size_t index) const {
  const auto above = std::ranges::upper_bound(ranks, index);
  const auto block = static_cast<std::size_t>(above - ranks.begin()) - 1;
  std::size_t left = index - ranks[block];
  for (std::size_t i = block * kBlockWords; i < arrays.ends.size(); ++i) {
    const auto here = static_cast<std::size_t>(std::popcount(arrays.ends[i]));
    if (left < here) return i * 64 + select_in_word(arrays.ends[i], left);
    left -= here;
  }
  fail_damaged();  // the bits are not those that were counted
}

std::size_t Lexicon::Data::parent(std::size_t node) const {
  // The last node whose edges begin at or before the one that leads here. Only nodes before it are looked
  // at, so that a walk to the root ends whatever the file has become.
  const auto before = arrays.first.subspan(1, node - 1);
  return static_cast<std::size_t>(std::ranges::upper_bound(before, node - 1) - before.begin());
}

std::pair<std::size_t, std::size_t> Lexicon::Data::edges(State state) const {
  if (state >= arrays.nodes()) {
    fail({.op = "lexicon",
          .what = "state",
          .expected = "one of this lexicon's " + std::to_string(arrays.nodes()),
          .got = std::to_string(state)});
  }
  const std::size_t begin = arrays.first[state], end = arrays.first[state + 1];
  // Was so when the file was opened.
  if (begin > end || end > arrays.tokens.size()) fail_damaged();
  return {begin, end};
}

void Lexicon::Data::check_intact() const {
  if (file.damaged()) fail_damaged();
}

void Lexicon::Data::fail_damaged() const {
  fail<Corrupt>({.op = "lexicon",
                 .what = quote(file.path().string()),
                 .expected = "the file as it was when it was opened",
                 .got = "one that was written to or cut in place meanwhile",
                 .todo = "open it again; lexicons are replaced by renaming, never edited in place"});
}

std::size_t Lexicon::size() const noexcept {
  return data_->ranks.back();
}
std::size_t Lexicon::positions() const noexcept {
  return data_->arrays.positions.size();
}
std::size_t Lexicon::nodes() const noexcept {
  return data_->arrays.nodes();
}
std::size_t Lexicon::bytes() const noexcept {
  return data_->arrays.bytes();
}
TokenId Lexicon::largest_token() const noexcept {
  return data_->largest_token;
}
const std::string& Lexicon::tokenizer() const noexcept {
  return data_->tokenizer;
}
const std::string& Lexicon::prefix() const noexcept {
  return data_->prefix;
}

std::optional<std::size_t> Lexicon::find(std::span<const TokenId> ids) const {
  const LexiconArrays& a = data_->arrays;
  std::size_t node = 0;
  for (const TokenId id : ids) {
    const auto [begin, end] = data_->edges(node);
    const auto siblings = a.tokens.subspan(begin, end - begin);
    const auto at = std::ranges::lower_bound(siblings, id);
    if (at == siblings.end() || *at != id) {
      data_->check_intact();
      return std::nullopt;
    }
    node = begin + static_cast<std::size_t>(at - siblings.begin()) + 1;
  }
  return index(node);
}

std::optional<std::size_t> Lexicon::index(State state) const {
  data_->edges(state);  // for its check
  const bool ends = data_->is_end(state);
  const std::size_t found = ends ? data_->rank(state) : 0;
  data_->check_intact();
  return ends ? std::optional(found) : std::nullopt;
}

std::vector<TokenId> Lexicon::entry(std::size_t index) const {
  if (index >= size()) {
    fail({.op = "lexicon.entry",
          .what = "index",
          .expected = "below " + std::to_string(size()),
          .got = std::to_string(index)});
  }
  std::vector<TokenId> ids;
  for (std::size_t node = data_->select(index); node != 0; node = data_->parent(node)) {
    ids.push_back(data_->arrays.tokens[node - 1]);
  }
  data_->check_intact();
  std::ranges::reverse(ids);
  return ids;
}

std::span<const std::uint32_t> Lexicon::positions(std::size_t index) const {
  if (index >= size()) {
    fail({.op = "lexicon.positions",
          .what = "index",
          .expected = "below " + std::to_string(size()),
          .got = std::to_string(index)});
  }
  const LexiconArrays& a = data_->arrays;
  if (a.begins.empty()) return a.positions.subspan(index, 1);
  const std::size_t begin = a.begins[index], end = a.begins[index + 1];
  if (begin >= end || end > a.positions.size()) data_->fail_damaged();
  return a.positions.subspan(begin, end - begin);
}

Constraint::State Lexicon::root() const {
  // A system call, so once for a search and not for every token.
  if (!data_->file.unchanged()) data_->fail_damaged();
  return 0;
}

AllowedTokens Lexicon::allowed(State state, AllowedScratch&) const {
  const auto [begin, end] = data_->edges(state);
  const bool may_end = data_->is_end(state);
  data_->check_intact();
  return {.kind = AllowedTokens::Kind::only,
          .tokens = data_->arrays.tokens.subspan(begin, end - begin),
          .may_end = may_end};
}

Constraint::State Lexicon::advance(State state, TokenId token) const {
  const auto [begin, end] = data_->edges(state);
  const auto siblings = data_->arrays.tokens.subspan(begin, end - begin);
  const auto at = std::ranges::lower_bound(siblings, token);
  const bool found = at != siblings.end() && *at == token;
  const auto next = begin + static_cast<std::size_t>(at - siblings.begin()) + 1;
  // The token came from `allowed`'s span: it counts only where that was not zeros.
  data_->check_intact();
  if (!found) {
    fail({.op = "lexicon.advance",
          .what = "token",
          .expected = "one of the " + std::to_string(siblings.size()) + " that may follow",
          .got = std::to_string(token)});
  }
  return next;
}

}  // namespace modicum
