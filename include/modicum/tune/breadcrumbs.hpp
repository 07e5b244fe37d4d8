// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include <modicum/tune/delta_merge.hpp>
#include <modicum/tune/magnitude_ranks.hpp>
#include <modicum/tune/ties.hpp>

namespace modicum::tune {

/// Makes the ⌊gamma · n⌋ largest differences of a tensor zero, and of the others all but the ⌊density · n⌋
/// largest. Where the two do not fit into n, fewer large ones go.
class OutlierTrim {
 public:
  OutlierTrim(std::vector<double> densities, std::vector<double> gammas)
      : densities_(std::move(densities)), gammas_(std::move(gammas)) {}

  void prepare(const TensorReader& tensor, ThreadPool& pool) {
    bands_.assign(densities_.size(), std::nullopt);
    const std::uint64_t n = tensor.elements();
    const auto share = [n](double part) { return static_cast<std::uint64_t>(part * static_cast<double>(n)); };
    std::vector<RankQuestion> questions;
    for (std::size_t m = 0; m < densities_.size(); ++m) {
      if (densities_[m] >= 1) continue;
      const std::uint64_t kept = densities_[m] <= 0 ? 0 : share(densities_[m]);
      const std::uint64_t top = std::min(share(gammas_[m]), n - kept);
      const std::uint64_t bottom = n - kept - top;
      questions.push_back({.model = m, .rank = bottom, .order = Order::ascending});
      questions.push_back({.model = m, .rank = bottom + kept, .order = Order::ascending});
    }
    if (questions.empty()) return;
    std::vector<RankCut> found = MagnitudeRanks(questions).find(tensor, pool);
    for (std::size_t i = 0; i < found.size(); i += 2) {
      bands_[questions[i].model] = Band{std::move(found[i]), std::move(found[i + 1])};
    }
  }

  void apply(std::size_t model, const Tile& tile, float* delta) const {
    if (!bands_[model]) return;
    CutWalk low(bands_[model]->low, Order::ascending, tile);
    CutWalk high(bands_[model]->high, Order::ascending, tile);
    if (low.uniform() && high.uniform()) return keep_between(low, high, tile.count, delta);
    for (std::size_t i = 0; i < tile.count; ++i) {
      const std::uint32_t magnitude = magnitude_bits(delta[i]);
      // Both are asked of every element: they count the ones that are equal to their cut.
      const bool small = low.before(magnitude), not_large = high.before(magnitude);
      if (small || !not_large) delta[i] = 0;
    }
  }

 private:
  /// Where no tile has some of several equal magnitudes on each side of a cut, two bounds say it all.
  static void keep_between(const CutWalk& low, const CutWalk& high, std::size_t count, float* delta) {
    const std::uint32_t least = low.bits() + (low.ties_before() ? 1u : 0u);
    const std::uint32_t end = high.bits() + (high.ties_before() ? 1u : 0u);
    const std::uint32_t width = end > least ? end - least : 0;
    for (std::size_t i = 0; i < count; ++i)
      delta[i] = magnitude_bits(delta[i]) - least < width ? delta[i] : 0.0f;
  }

  struct Band {
    RankCut low, high;
  };
  std::vector<double> densities_;
  std::vector<double> gammas_;
  std::vector<std::optional<Band>> bands_;  ///< of each model; empty: all is kept
};

/// Model Breadcrumbs (Davari & Belilovsky 2024, arXiv:2312.06795), and with TIES' election of signs.
using Breadcrumbs = DeltaMerge<OutlierTrim, WeightedSum>;
using BreadcrumbsTies = DeltaMerge<OutlierTrim, SignElection>;
static_assert(MergeMethod<Breadcrumbs> && MergeMethod<BreadcrumbsTies>);

}  // namespace modicum::tune
