// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <vector>

#include <modicum/retrofit/kv_merge.hpp>

namespace modicum::retrofit {

using Heads = std::vector<std::size_t>;

/// One frequency of a group's keys κ: κ̄ = mixᴴ κ stands for them, κ̂_h = spread_h κ̄.
struct KeyMerge {
  Eigen::VectorXcd mix, spread;
};

/// A group's values v, one head below the other: v̄ = mix v, v̂ = spread v̄.
struct ValueMerge {
  linalg::Matrix mix;     ///< [d, group · d]
  linalg::Matrix spread;  ///< [group · d, d]
};

struct GroupMerge {
  std::vector<KeyMerge> keys;  ///< by frequency
  ValueMerge values;
  double score_loss = 0.0;  ///< energy, in the unit of `HeadMerger::score_energy`
  double value_loss = 0.0;
};

/// Merges groups of one layer's KV heads: what stands for them, and what is lost by it.
class HeadMerger {
 public:
  HeadMerger(const AttentionWeights& weights, const KvStatistics& statistics, KvMergeMethod method);

  GroupMerge merge(const Heads& group) const;

  double score_energy() const noexcept { return score_energy_; }
  double value_energy() const noexcept { return value_energy_; }

 private:
  KeyMerge merge_keys(const Eigen::MatrixXcd& gram, const linalg::Vector& energy) const;
  ValueMerge merge_values(const Heads& group, const linalg::Matrix& gram) const;
  ValueMerge principal_values(const Heads& group, const linalg::Matrix& gram) const;
  double value_loss(const Heads& group, const linalg::Matrix& gram, const ValueMerge& merge) const;
  linalg::Matrix gram_of(const Heads& group) const;

  KvMergeMethod method_;
  Eigen::Index d_;
  std::vector<Eigen::MatrixXcd> key_grams_;  ///< by frequency
  linalg::Matrix query_energy_;              ///< [d/2, kv_heads]: of all queries of a KV head
  linalg::Matrix value_gram_;
  std::vector<linalg::Matrix> output_;          ///< by KV head: P_h = Σ_q W_O,qᵀ W_O,q
  std::vector<linalg::Matrix> output_root_;     ///< P_h^½
  std::vector<linalg::Matrix> output_inverse_;  ///< its pseudo-inverse
  double score_energy_ = 0.0;
  double value_energy_ = 0.0;
};

/// Equal groups of `size` heads, of small summed `pair_loss` (symmetric) within: chosen greedily, then
/// improved by swaps, also of consecutive groups; the better of the two.
std::vector<Heads> group_heads(const linalg::Matrix& pair_loss, std::size_t size);

std::vector<Heads> consecutive_groups(std::size_t heads, std::size_t size);

}  // namespace modicum::retrofit
