// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include <modicum/base/lane_sum.hpp>
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
  /// 1 or 0 for each of the elements from `first` on.
  void fill(std::uint64_t first, std::size_t count, float* keep) const {
    std::size_t i = 0;
    if ((first & 1) != 0 && count > 0) keep[i++] = (*this)(first) ? 1.0f : 0.0f;
    for (; i + 2 <= count; i += 2) {
      const std::uint64_t two = bits((first + i) >> 1);
      keep[i] = one_below(two & 0xffffffffu);
      keep[i + 1] = one_below(two >> 32);
    }
    if (i < count) keep[i] = (*this)(first + i) ? 1.0f : 0.0f;
  }

 private:
  /// Without a branch, which random bits would mispredict every other time.
  float one_below(std::uint64_t x) const {
    return std::bit_cast<float>(0x3f800000u & (0u - static_cast<std::uint32_t>((x - below_) >> 63)));
  }
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
      for (std::size_t m = 0; m < scales_.size(); ++m) {
        if (densities_[m] > 0) scales_[m] = static_cast<float>(densities_[m]);  // of nothing, 0 / 0
      }
    }
    if (rescale_ != Rescale::l1_norm) return;
    struct Sums {
      double all = 0, kept = 0;
    };
    std::vector<Sums> parts(tensor.tiles() * scales_.size());
    std::vector<std::vector<float>> masks(pool.size());
    for_each_tile(tensor, pool, pool.size(), [&](std::size_t run, const Tile& tile) {
      masks[run].resize(tile.count);
      const float* const keep = masks[run].data();
      for (std::size_t m = 0; m < scales_.size(); ++m) {
        if (densities_[m] >= 1) continue;
        masks_[m].fill(tile.first, tile.count, masks[run].data());
        const float* const model = tile.models[m];
        Lanes all{}, kept{};
        for_each_lane(tile.count, [&](std::size_t i, std::size_t lane) {
          const float size = std::abs(model[i] - tile.base[i]);
          all[lane] += static_cast<double>(size);
          kept[lane] += static_cast<double>(size * keep[i]);
        });
        parts[tile.index * scales_.size() + m] = {sum(all), sum(kept)};
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
    std::vector<float> keep(tile.count);
    masks_[model].fill(tile.first, tile.count, keep.data());
    if (rescale_ == Rescale::inverse_density) {
      for (std::size_t i = 0; i < tile.count; ++i) delta[i] = delta[i] * keep[i] / scale;
    } else {
      for (std::size_t i = 0; i < tile.count; ++i) delta[i] = delta[i] * keep[i] * scale;
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
