// SPDX-License-Identifier: Apache-2.0
// What a lexicon holds, for the files that build, use and store it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <modicum/base/mapped_file.hpp>
#include <modicum/search/lexicon.hpp>

namespace modicum {

/// A trie in level order. Node 0 is the root; the edges of node n are [first[n], first[n + 1]), and edge e
/// leads to node e + 1.
struct LexiconArrays {
  std::span<const std::uint64_t> ends;       ///< bit n % 64 of word n / 64: an entry ends in node n
  std::span<const std::uint32_t> first;      ///< [nodes + 1]
  std::span<const TokenId> tokens;           ///< [nodes − 1], of each edge
  std::span<const std::uint32_t> positions;  ///< of entry 0, then of entry 1, …
  /// [entries + 1], where in `positions` those of each entry begin; empty where each entry has one.
  std::span<const std::uint32_t> begins;

  std::size_t nodes() const noexcept { return first.size() - 1; }
  std::size_t bytes() const noexcept {
    return ends.size_bytes() + first.size_bytes() + tokens.size_bytes() + positions.size_bytes() +
           begins.size_bytes();
  }
};

/// The arrays of a lexicon that was built in this process.
struct LexiconVectors {
  std::vector<std::uint64_t> ends;
  std::vector<std::uint32_t> first;
  std::vector<TokenId> tokens;
  std::vector<std::uint32_t> positions;
  std::vector<std::uint32_t> begins;

  LexiconArrays view() const { return {ends, first, tokens, positions, begins}; }
};

struct Lexicon::Data {
  /// `file` is the mapping that the arrays lie in, if they do; `owner` keeps them otherwise.
  Data(LexiconArrays arrays, std::string tokenizer, std::string prefix, std::shared_ptr<const void> owner,
       MappedFile file = {});

  bool is_end(std::size_t node) const { return (arrays.ends[node / 64] >> (node % 64) & 1u) != 0; }
  /// Entries that end before `node`.
  std::size_t rank(std::size_t node) const;
  /// The node in which the entry `index` ends.
  std::size_t select(std::size_t index) const;
  std::size_t parent(std::size_t node) const;
  /// The edges of `state`, first and one past the last.
  std::pair<std::size_t, std::size_t> edges(State state) const;
  /// Whether the file was truncated and zeros were read; asked after reading what is to count.
  void check_intact() const;
  [[noreturn]] void fail_damaged() const;

  LexiconArrays arrays;
  std::string tokenizer;
  std::string prefix;
  std::shared_ptr<const void> owner;
  MappedFile file;
  std::vector<std::uint32_t> ranks;  ///< entries that end before each block of 512 nodes, and at last all
  TokenId largest_token = 0;
};

}  // namespace modicum
