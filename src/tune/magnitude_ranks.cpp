// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <mutex>
#include <optional>
#include <utility>

#include <modicum/tune/magnitude_ranks.hpp>

namespace modicum::tune {
namespace {

constexpr unsigned kLowerBits = 15;
constexpr std::size_t kUpperBins = std::size_t{1} << 16;
constexpr std::size_t kLowerBins = std::size_t{1} << kLowerBits;
/// Histograms are per run; more of them than this would cost more than they gain.
constexpr std::size_t kMostRuns = 16;

std::size_t runs_for(const TensorReader& tensor, const ThreadPool& pool) {
  return std::max<std::size_t>(1, std::min({pool.size(), kMostRuns, tensor.tiles()}));
}

/// Calls f(magnitude) of model − base for the elements of a tile.
template <class F>
void for_each_magnitude(const Tile& tile, std::size_t model, F&& f) {
  const float* const x = tile.models[model];
  for (std::size_t i = 0; i < tile.count; ++i) f(magnitude_bits(x[i] - tile.base[i]));
}

/// The bin in which the `rank`-th element (from 1) lies, and how many elements come before that bin.
struct Bin {
  std::uint64_t index = 0;
  std::uint64_t before = 0;
};
Bin find_bin(const std::vector<std::uint64_t>& counts, std::uint64_t rank, Order order) {
  Bin bin;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    bin.index = order == Order::ascending ? i : counts.size() - 1 - i;
    if (rank <= bin.before + counts[bin.index]) break;
    bin.before += counts[bin.index];
  }
  return bin;
}

}  // namespace

MagnitudeRanks::MagnitudeRanks(std::vector<RankQuestion> questions) {
  for (RankQuestion& question : questions) {
    searches_.push_back({.question = question, .counts = Histogram(kUpperBins)});
  }
}

void MagnitudeRanks::count(const TensorReader& tensor, ThreadPool& pool) {
  const std::size_t runs = runs_for(tensor, pool);
  const std::size_t bins = narrowed_ ? kLowerBins : kUpperBins;
  std::mutex mutex;
  // Counts of a run fit 32 bits as long as a run is below 2^32 elements.
  std::vector<std::vector<std::uint32_t>> parts(runs);
  const auto gather = [&](std::size_t run) {
    const std::lock_guard lock(mutex);
    for (std::size_t s = 0; s < searches_.size(); ++s) {
      for (std::size_t b = 0; b < bins; ++b) searches_[s].counts[b] += parts[run][s * bins + b];
    }
    std::ranges::fill(parts[run], 0u);
  };
  std::vector<std::uint64_t> counted(runs);
  for_each_tile(tensor, pool, runs, [&](std::size_t run, const Tile& tile) {
    if (parts[run].empty()) parts[run].assign(searches_.size() * bins, 0u);
    if ((counted[run] += tile.count) > UINT32_MAX) {
      gather(run);
      counted[run] = tile.count;
    }
    for (std::size_t s = 0; s < searches_.size(); ++s) {
      std::uint32_t* const counts = parts[run].data() + s * bins;
      if (!narrowed_) {
        for_each_magnitude(tile, searches_[s].question.model,
                           [&](std::uint32_t m) { ++counts[m >> kLowerBits]; });
        continue;
      }
      const auto upper = static_cast<std::uint32_t>(searches_[s].upper);
      for_each_magnitude(tile, searches_[s].question.model, [&](std::uint32_t m) {
        if (m >> kLowerBits == upper) ++counts[m & (kLowerBins - 1)];
      });
    }
  });
  for (std::size_t run = 0; run < runs; ++run) {
    if (!parts[run].empty()) gather(run);
  }
}

void MagnitudeRanks::narrow() {
  for (Search& search : searches_) {
    const Bin bin = find_bin(search.counts, search.question.rank, search.question.order);
    search.upper = bin.index;
    search.before = bin.before;
    search.counts.assign(kLowerBins, 0);
  }
  narrowed_ = true;
}

std::vector<RankCut> MagnitudeRanks::cuts(std::vector<std::uint64_t>& equal) const {
  std::vector<RankCut> found;
  for (const Search& search : searches_) {
    const auto [model, rank, order] = search.question;
    if (rank == 0) {  // beyond every magnitude, on the side that comes first
      found.push_back({.bits = order == Order::ascending ? 0u : 0x7fffffffu});
      equal.push_back(0);
      continue;
    }
    const Bin bin = find_bin(search.counts, rank - search.before, order);
    found.push_back({.bits = static_cast<std::uint32_t>(search.upper << kLowerBits | bin.index),
                     .ties = rank - search.before - bin.before});
    equal.push_back(search.counts[bin.index]);
  }
  return found;
}

std::vector<RankCut> MagnitudeRanks::cuts() const {
  std::vector<std::uint64_t> ignored;
  return cuts(ignored);
}

void MagnitudeRanks::count_ties(const TensorReader& tensor, ThreadPool& pool, std::vector<RankCut>& cuts,
                                const std::vector<std::uint64_t>& equal) const {
  std::vector<std::size_t> split;
  for (std::size_t s = 0; s < cuts.size(); ++s) {
    if (cuts[s].ties > 0 && cuts[s].ties < equal[s]) split.push_back(s);
  }
  if (split.empty()) return;
  for (const std::size_t s : split) cuts[s].ties_before.resize(tensor.tiles());
  for_each_tile(tensor, pool, runs_for(tensor, pool), [&](std::size_t, const Tile& tile) {
    for (const std::size_t s : split) {
      std::uint64_t count = 0;
      for_each_magnitude(tile, searches_[s].question.model,
                         [&](std::uint32_t m) { count += m == cuts[s].bits ? 1 : 0; });
      cuts[s].ties_before[tile.index] = count;
    }
  });
  for (const std::size_t s : split) {
    std::uint64_t before = 0;
    for (std::uint64_t& count : cuts[s].ties_before) before += std::exchange(count, before);
  }
}

std::vector<RankCut> MagnitudeRanks::find(const TensorReader& tensor, ThreadPool& pool) {
  count(tensor, pool);
  narrow();
  count(tensor, pool);
  std::vector<std::uint64_t> equal;
  std::vector<RankCut> found = cuts(equal);
  count_ties(tensor, pool, found, equal);
  return found;
}

}  // namespace modicum::tune
