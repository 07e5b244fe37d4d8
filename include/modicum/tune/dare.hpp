// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include <modicum/tune/delta_merge.hpp>
#include <modicum/tune/ties.hpp>

namespace modicum::tune {

/// How what is left of a sparsified difference is scaled up again.
enum class Rescale {
  none,
  inverse_density,  ///< 1 / density: the paper, and PEFT
  l1_norm,          ///< to the sum of magnitudes that the tensor had: mergekit
};

/// Which elements are kept: bit i of a sequence that depends on its key alone, so that no thread, tile or
/// earlier tensor changes it (SplitMix64, Steele et al. 2014; 32 bits an element).
class KeepMask {
 public:
  KeepMask(std::uint64_t key, double density)
      : key_(key), below_(static_cast<std::uint64_t>(std::llround(std::clamp(density, 0.0, 1.0) * 0x1p32))) {}

  bool operator()(std::uint64_t element) const {
    return (bits(element >> 1) >> (element & 1 ? 32 : 0) & 0xffffffffu) < below_;
  }

 private:
  std::uint64_t bits(std::uint64_t at) const {
    std::uint64_t z = key_ + (at + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  std::uint64_t key_;
  std::uint64_t below_;
};

/// Keeps each difference with the probability `density`, then scales what is kept.
class RandomDrop {
 public:
  /// `keys`: of the masks, one a model.
  RandomDrop(std::vector<double> densities, const std::vector<std::uint64_t>& keys, Rescale rescale)
      : densities_(std::move(densities)), rescale_(rescale) {
    for (std::size_t m = 0; m < densities_.size(); ++m) masks_.emplace_back(keys[m], densities_[m]);
  }

  void prepare(const TensorReader& tensor, ThreadPool& pool) {
    scales_.assign(densities_.size(), 1.0f);
    if (rescale_ == Rescale::inverse_density) {
      for (std::size_t m = 0; m < scales_.size(); ++m) scales_[m] = static_cast<float>(densities_[m]);
    }
    if (rescale_ != Rescale::l1_norm) return;
    struct Sums {
      double all = 0, kept = 0;
    };
    std::vector<Sums> parts(tensor.tiles() * scales_.size());
    for_each_tile(tensor, pool, pool.size(), [&](std::size_t, const Tile& tile) {
      for (std::size_t m = 0; m < scales_.size(); ++m) {
        if (densities_[m] >= 1) continue;
        Sums& sums = parts[tile.index * scales_.size() + m];
        for (std::size_t i = 0; i < tile.count; ++i) {
          const double size = std::abs(tile.models[m][i] - tile.base[i]);
          sums.all += size;
          sums.kept += masks_[m](tile.first + i) ? size : 0.0;
        }
      }
    });
    for (std::size_t m = 0; m < scales_.size(); ++m) {
      Sums all;
      for (std::size_t at = m; at < parts.size(); at += scales_.size()) {
        all.all += parts[at].all;
        all.kept += parts[at].kept;
      }
      if (all.all >= 1e-7 && all.kept >= 1e-7) scales_[m] = static_cast<float>(all.all / all.kept);
    }
  }

  void apply(std::size_t model, const Tile& tile, float* delta) const {
    if (densities_[model] >= 1) return;
    const float scale = scales_[model];
    const bool divides = rescale_ == Rescale::inverse_density;
    for (std::size_t i = 0; i < tile.count; ++i) {
      const float scaled = divides ? delta[i] / scale : delta[i] * scale;
      delta[i] = masks_[model](tile.first + i) ? scaled : 0.0f;
    }
  }

 private:
  std::vector<double> densities_;
  Rescale rescale_;
  std::vector<KeepMask> masks_;
  std::vector<float> scales_;
};

/// DARE (Yu et al. 2024, arXiv:2311.03099): drop at random and rescale, then task arithmetic or TIES'
/// election of signs.
using DareLinear = DeltaMerge<RandomDrop, WeightedSum>;
using DareTies = DeltaMerge<RandomDrop, SignElection>;
static_assert(MergeMethod<DareLinear> && MergeMethod<DareTies>);

}  // namespace modicum::tune
