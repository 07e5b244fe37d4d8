// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include <modicum/decode/generate.hpp>
#include <modicum/text/tokenizer.hpp>

namespace modicum {

/// One token of a search: a place in the trie of everything that was ever a beam or a hypothesis.
struct SearchNode {
  std::uint32_t parent;   ///< index of the node above; the root is its own parent
  TokenId token;          ///< -1 at the root, which is the end of the prompt
  float log_probability;  ///< of this token, after processors
  float score;            ///< sum of those from the root to here, f32 as it was accumulated
  std::optional<FinishReason> end = std::nullopt;  ///< why a hypothesis ended here, where one did
};

/// The trie of a search. Nodes are in the order in which they came: a parent stands before its children, a
/// shorter path before a longer one.
class SearchTree {
 public:
  static constexpr std::uint32_t kRoot = 0;

  SearchTree() { nodes_.push_back({.parent = kRoot, .token = -1, .log_probability = 0.0f, .score = 0.0f}); }

  const std::vector<SearchNode>& nodes() const noexcept { return nodes_; }
  const SearchNode& operator[](std::uint32_t node) const { return nodes_[node]; }
  std::size_t size() const noexcept { return nodes_.size(); }

  std::uint32_t add(const SearchNode& node) {
    nodes_.push_back(node);
    return static_cast<std::uint32_t>(nodes_.size() - 1);
  }
  void set_end(std::uint32_t node, FinishReason reason) { nodes_[node].end = reason; }

  /// The tokens from the root to `node`, appended to `ids`.
  void append_path(std::uint32_t node, std::vector<TokenId>& ids) const {
    const std::size_t first = ids.size();
    for (; node != kRoot; node = nodes_[node].parent) ids.push_back(nodes_[node].token);
    std::reverse(ids.begin() + static_cast<std::ptrdiff_t>(first), ids.end());
  }

  std::vector<TokenId> path(std::uint32_t node) const {
    std::vector<TokenId> ids;
    append_path(node, ids);
    return ids;
  }

  /// The log-probability of each token from the root to `node`.
  std::vector<float> log_probabilities(std::uint32_t node) const {
    std::vector<float> values;
    for (; node != kRoot; node = nodes_[node].parent) values.push_back(nodes_[node].log_probability);
    std::ranges::reverse(values);
    return values;
  }

 private:
  std::vector<SearchNode> nodes_;
};

}  // namespace modicum
