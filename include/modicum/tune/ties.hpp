// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <modicum/tune/delta_merge.hpp>
#include <modicum/tune/magnitude_ranks.hpp>

namespace modicum::tune {

/// Whose definition of a method counts; they differ in results, not in speed.
enum class Definition {
  mergekit,  ///< per tensor; TIES elects signs from weighted differences and divides by the weights that
             ///< agree
  peft,      ///< per tensor; signs from unweighted differences, divided by how many agree
  paper,     ///< over the whole model as one vector
};

/// Keeps the ⌊density · n⌋ largest differences of a tensor and makes the others zero. Of equal ones the first
/// are kept. With mergekit at least one is kept where the density is above 0.
class MagnitudeTrim {
 public:
  MagnitudeTrim(std::vector<double> densities, Definition definition)
      : densities_(std::move(densities)), definition_(definition) {}
  /// With cuts that were found over a whole model: what comes before them is kept.
  explicit MagnitudeTrim(std::vector<RankCut> cuts) : cuts_(cuts.begin(), cuts.end()) {}

  void prepare(const TensorReader& tensor, ThreadPool& pool) {
    if (densities_.empty()) return;
    cuts_.assign(densities_.size(), std::nullopt);
    std::vector<RankQuestion> questions;
    for (std::size_t m = 0; m < densities_.size(); ++m) {
      if (densities_[m] < 1)
        questions.push_back({.model = m, .rank = kept(densities_[m], tensor.elements())});
    }
    if (questions.empty()) return;
    std::vector<RankCut> found = MagnitudeRanks(questions).find(tensor, pool);
    for (std::size_t i = 0; i < found.size(); ++i) cuts_[questions[i].model] = std::move(found[i]);
  }

  void apply(std::size_t model, const Tile& tile, float* delta) const {
    if (!cuts_[model]) return;
    CutWalk walk(*cuts_[model], Order::descending, tile);
    if (walk.uniform()) {
      const std::uint32_t least = walk.bits() + (walk.ties_before() ? 0u : 1u);
      for (std::size_t i = 0; i < tile.count; ++i) {
        delta[i] = magnitude_bits(delta[i]) >= least ? delta[i] : 0.0f;
      }
      return;
    }
    for (std::size_t i = 0; i < tile.count; ++i) {
      if (!walk.before(magnitude_bits(delta[i]))) delta[i] = 0;
    }
  }

 private:
  std::uint64_t kept(double density, std::uint64_t elements) const {
    if (density <= 0 || elements == 0) return 0;
    const auto count = static_cast<std::uint64_t>(density * static_cast<double>(elements));
    return definition_ == Definition::mergekit ? std::max<std::uint64_t>(1, count) : count;
  }

  std::vector<double> densities_;
  Definition definition_ = Definition::mergekit;
  std::vector<std::optional<RankCut>> cuts_;  ///< of each model; empty: all is kept
};

/// Of each element, only the differences with the sign that most of them (by magnitude) have are combined.
/// Zeros agree with nobody.
class SignElection {
 public:
  /// `normalize`: mergekit's divisor, the weights that agree. The others always divide.
  /// `zero_is_positive`: the sign where differences cancel out, of the paper's whole-model vote.
  SignElection(std::vector<float> weights, Definition definition, bool normalize,
               bool zero_is_positive = true)
      : weights_(std::move(weights)),
        definition_(definition),
        normalize_(normalize || definition != Definition::mergekit),
        zero_is_positive_(zero_is_positive) {}

  void combine(std::span<float* const> deltas, std::size_t count, float* room, float* out) const {
    float* const sign = room;
    float* const divisor = room + count;
    elect(deltas, count, sign);
    const bool weighted = definition_ == Definition::mergekit;
    for (std::size_t i = 0; i < count; ++i) out[i] = divisor[i] = 0;
    for (std::size_t m = 0; m < deltas.size(); ++m) {
      const float scale = weighted ? 1.0f : weights_[m], share = weighted ? weights_[m] : 1.0f;
      add_agreeing(deltas[m], sign, scale, share, count, out, divisor);
    }
    if (!normalize_) return;
    for (std::size_t i = 0; i < count; ++i) out[i] /= one_for_zero(divisor[i]);
  }

 private:
  // Selections below are spelt in bits: compilers make branches of the others, which random signs mispredict.

  static float one_for_zero(float x) {
    const auto bits = std::bit_cast<std::uint32_t>(x);
    return std::bit_cast<float>((bits & 0x7fffffffu) == 0 ? 0x3f800000u : bits);
  }

  /// ±1 for each element. With mergekit's definition the differences are weighted from here on.
  void elect(std::span<float* const> deltas, std::size_t count, float* sign) const {
    for (std::size_t i = 0; i < count; ++i) sign[i] = 0;
    for (std::size_t m = 0; m < deltas.size(); ++m) {
      float* const delta = deltas[m];
      const float weight = definition_ == Definition::mergekit ? weights_[m] : 1.0f;
      for (std::size_t i = 0; i < count; ++i) {
        delta[i] *= weight;
        sign[i] += delta[i];
      }
    }
    // 0 + −0 is +0, so a sum of zero gets the sign of ties.
    const float tie = zero_is_positive_ ? 1.0f : -1.0f;
    for (std::size_t i = 0; i < count; ++i) sign[i] = tie * std::copysign(1.0f, tie * sign[i] + 0.0f);
  }

  /// Adds the differences that have the elected sign, times `scale`, and `share` for each of them.
  static void add_agreeing(const float* delta, const float* sign, float scale, float share, std::size_t count,
                           float* out, float* divisor) {
    const auto share_bits = std::bit_cast<std::uint32_t>(share);
    for (std::size_t i = 0; i < count; ++i) {
      const float along = delta[i] * sign[i];
      const float agrees = along > 0 ? along : 0.0f;
      const auto positive = static_cast<std::uint32_t>(-std::bit_cast<std::int32_t>(agrees) >> 31);
      out[i] += agrees * sign[i] * scale;
      divisor[i] += std::bit_cast<float>(positive & share_bits);
    }
  }

  std::vector<float> weights_;
  Definition definition_;
  bool normalize_;
  bool zero_is_positive_;
};

/// TIES (Yadav et al. 2023, arXiv:2306.01708): trim by magnitude, elect a sign, merge what agrees.
using Ties = DeltaMerge<MagnitudeTrim, SignElection>;
static_assert(MergeMethod<Ties>);

/// PEFT's `magnitude_prune`: trim by magnitude, then the weighted sum.
using MagnitudePrune = DeltaMerge<MagnitudeTrim, WeightedSum>;
static_assert(MergeMethod<MagnitudePrune>);

}  // namespace modicum::tune
