// SPDX-License-Identifier: Apache-2.0
#include "vocabulary.hpp"

#include <limits>

#include <modicum/base/error.hpp>
#include <modicum/base/hash.hpp>

#include "../base/quote.hpp"

namespace modicum::text {

std::size_t Vocabulary::slot(std::string_view token, std::uint32_t hash) const {
  const std::size_t mask = slots_.size() - 1;
  std::size_t at = hash & mask;
  for (; slots_[at] >= 0; at = (at + 1) & mask) {
    const Entry& entry = entries_[static_cast<std::size_t>(slots_[at])];
    if (entry.hash == hash && text_of(entry) == token) break;
  }
  return at;
}

void Vocabulary::grow() {
  slots_.assign(slots_.empty() ? 1024 : slots_.size() * 2, -1);
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    std::size_t at = entries_[i].hash & (slots_.size() - 1);
    while (slots_[at] >= 0) at = (at + 1) & (slots_.size() - 1);
    slots_[at] = static_cast<std::int32_t>(i);
  }
}

void Vocabulary::add(std::string_view token, TokenId id) {
  if ((entries_.size() + 1) * 2 > slots_.size()) grow();
  if (texts_.size() + token.size() > std::numeric_limits<std::uint32_t>::max() / 2) {
    fail<Unsupported>({.op = "tokenizer.load", .what = "vocabulary", .expected = "less than 2 GiB of text"});
  }
  const auto hash = static_cast<std::uint32_t>(hash64(token));
  const std::size_t at = slot(token, hash);
  if (slots_[at] >= 0) {
    entries_[static_cast<std::size_t>(slots_[at])].id = id;
    return;
  }
  slots_[at] = static_cast<std::int32_t>(entries_.size());
  entries_.push_back(
      {static_cast<std::uint32_t>(texts_.size()), static_cast<std::uint32_t>(token.size()), hash, id});
  texts_ += token;
}

void Vocabulary::finish() {
  by_id_ = FlatMap<std::int32_t>(entries_.size());
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    const auto id = static_cast<std::uint64_t>(entries_[i].id);
    if (const std::int32_t* other = by_id_.find(id)) {
      fail<FormatError>({.op = "tokenizer.load",
                         .what = "vocabulary",
                         .expected = "one token for each id",
                         .got = quote(text_of(entries_[static_cast<std::size_t>(*other)])) + " and " +
                                quote(text_of(entries_[i])) + " with id " + std::to_string(id)});
    }
    by_id_.insert_or_assign(id, static_cast<std::int32_t>(i));
  }
}

std::optional<TokenId> Vocabulary::find(std::string_view token) const {
  if (slots_.empty()) return std::nullopt;
  const std::int32_t index = slots_[slot(token, static_cast<std::uint32_t>(hash64(token)))];
  if (index < 0) return std::nullopt;
  return entries_[static_cast<std::size_t>(index)].id;
}

std::optional<std::string_view> Vocabulary::text(TokenId id) const {
  if (id < 0) return std::nullopt;
  const std::int32_t* index = by_id_.find(static_cast<std::uint64_t>(id));
  if (index == nullptr) return std::nullopt;
  return text_of(entries_[static_cast<std::size_t>(*index)]);
}

}  // namespace modicum::text
