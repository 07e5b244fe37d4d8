// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <modicum/text/tokenizer.hpp>

#include "flat_map.hpp"

namespace modicum::text {

/// Token texts and their ids, both ways. Texts lie behind one another in one string.
class Vocabulary {
 public:
  /// The last id of equal texts counts, as for the keys of a JSON object.
  void add(std::string_view token, TokenId id);
  /// To be called after the last `add`. Throws `FormatError` where two tokens have one id.
  void finish();

  std::optional<TokenId> find(std::string_view token) const;
  std::optional<std::string_view> text(TokenId id) const;
  std::size_t size() const { return entries_.size(); }

 private:
  struct Entry {
    std::uint32_t begin, length;
    std::uint32_t hash;
    TokenId id;
  };
  std::string_view text_of(const Entry& entry) const {
    return std::string_view(texts_).substr(entry.begin, entry.length);
  }
  /// Slot of `token`, or the free one where it belongs.
  std::size_t slot(std::string_view token, std::uint32_t hash) const;
  void grow();

  std::string texts_;
  std::vector<Entry> entries_;
  std::vector<std::int32_t> slots_;  ///< index into `entries_`, -1 where free
  FlatMap<std::int32_t> by_id_;
};

}  // namespace modicum::text
