// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <modicum/base/thread_pool.hpp>
#include <modicum/tune/tensor_tiles.hpp>

namespace modicum::tune {

/// |x| as an integer that orders as it does (for what is not NaN).
inline std::uint32_t magnitude_bits(float x) {
  return std::bit_cast<std::uint32_t>(x) & 0x7fffffffu;
}

/// A place in the order of a tensor's elements by magnitude. Equal magnitudes count in the order in which
/// they lie in the tensor, as in a stable sort.
struct RankCut {
  std::uint32_t bits = 0;  ///< magnitude of the element at the cut
  std::uint64_t ties = 0;  ///< elements of that magnitude that come before the cut
  /// By tile: how many elements of that magnitude lie before it. Empty where none or all of them come before.
  std::vector<std::uint64_t> ties_before = {};
};

enum class Order { ascending, descending };

/// What is asked of one model's differences from the base: the cut before which `rank` elements come.
struct RankQuestion {
  std::size_t model = 0;
  std::uint64_t rank = 0;  ///< at most the number of elements
  Order order = Order::descending;
};

/// Finds cuts by counting: a histogram of the upper 16 bits of each magnitude, one of the lower 15 of those
/// in the cut's bin, and, where some of several equal elements come before a cut, how many of them each tile
/// has. Reads the tensor two or three times, in memory that does not grow with it (0.4 MB a question and
/// thread). Exact, and the same whatever the number of threads.
class MagnitudeRanks {
 public:
  explicit MagnitudeRanks(std::vector<RankQuestion> questions);

  std::vector<RankCut> find(const TensorReader& tensor, ThreadPool& pool);

  /// For cuts over several tensors as if they were one: `count` each of them in both passes, after the first
  /// pass `narrow`, after the second `cuts` (without `ties_before`).
  void count(const TensorReader& tensor, ThreadPool& pool);
  void narrow();
  std::vector<RankCut> cuts() const;

 private:
  using Histogram = std::vector<std::uint64_t>;
  struct Search {
    RankQuestion question;
    std::uint64_t upper = 0;   ///< bin of the cut
    std::uint64_t before = 0;  ///< elements in bins that come before it
    Histogram counts;
  };

  void count_ties(const TensorReader& tensor, ThreadPool& pool, std::vector<RankCut>& cuts,
                  const std::vector<std::uint64_t>& equal) const;
  std::vector<RankCut> cuts(std::vector<std::uint64_t>& equal) const;

  std::vector<Search> searches_;
  bool narrowed_ = false;
};

/// Walks a tile in one thread and tells of each magnitude whether it comes before the cut.
class CutWalk {
 public:
  CutWalk(const RankCut& cut, Order order, const Tile& tile)
      : order_(order),
        bits_(cut.bits),
        ties_(cut.ties),
        seen_(cut.ties_before.empty() ? 0 : cut.ties_before[tile.index]) {
    if (cut.ties_before.empty()) {
      all_ = cut.ties > 0;
      same_ = true;
    } else {
      const std::uint64_t end =
          tile.index + 1 < cut.ties_before.size() ? cut.ties_before[tile.index + 1] : UINT64_MAX;
      all_ = end <= ties_;
      same_ = all_ || seen_ >= ties_;
    }
  }

  /// Whether all elements of the cut's magnitude are on one side of it within this tile.
  bool uniform() const noexcept { return same_; }
  /// Of a uniform tile: whether they come before it.
  bool ties_before() const noexcept { return all_; }
  std::uint32_t bits() const noexcept { return bits_; }

  /// To be asked of the tile's elements in their order.
  bool before(std::uint32_t magnitude) {
    if (magnitude != bits_) return (magnitude < bits_) == (order_ == Order::ascending);
    return same_ ? all_ : seen_++ < ties_;
  }

 private:
  Order order_;
  std::uint32_t bits_;
  std::uint64_t ties_;
  std::uint64_t seen_;
  bool all_ = false;
  bool same_ = false;
};

}  // namespace modicum::tune
