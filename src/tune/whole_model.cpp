// SPDX-License-Identifier: Apache-2.0
#include "whole_model.hpp"

#include <algorithm>
#include <atomic>

namespace modicum::tune {
namespace {

/// The (n − ⌊density · n⌋)-th smallest magnitude is the least that is kept: the kth value of the paper's
/// code.
std::vector<RankQuestion> questions_of(const std::vector<double>& densities, std::uint64_t elements) {
  std::vector<RankQuestion> questions;
  for (std::size_t m = 0; m < densities.size(); ++m) {
    const auto kept = static_cast<std::uint64_t>(densities[m] * static_cast<double>(elements));
    questions.push_back({.model = m,
                         .rank = std::max<std::uint64_t>(1, elements - std::min(kept, elements)),
                         .order = Order::ascending});
  }
  return questions;
}

}  // namespace

WholeModelReader::WholeModelReader(const std::vector<double>& densities, std::uint64_t elements)
    : ranks_(questions_of(densities, elements)) {}

void WholeModelReader::read(const TensorReader& tensor, ThreadPool& pool) {
  if (pass_ < 2) return ranks_.count(tensor, pool);
  std::atomic<std::int64_t> vote{0};
  for_each_tile(tensor, pool, std::min(pool.size(), std::max<std::size_t>(1, tensor.tiles())),
                [&](std::size_t, const Tile& tile) {
                  std::int64_t part = 0;
                  for (std::size_t i = 0; i < tile.count; ++i) {
                    float sum = 0;
                    for (std::size_t m = 0; m < tile.models.size(); ++m) {
                      const float delta = tile.models[m][i] - tile.base[i];
                      sum += magnitude_bits(delta) >= cuts_[m].bits ? delta : 0.0f;
                    }
                    part += (sum > 0 ? 1 : 0) - (sum < 0 ? 1 : 0);
                  }
                  vote += part;
                });
  vote_ += vote;
}

void WholeModelReader::next_pass() {
  if (pass_ == 0) ranks_.narrow();
  if (pass_ == 1) {
    cuts_ = ranks_.cuts();
    // From here on, what comes before a cut are magnitudes at or above it.
    for (RankCut& cut : cuts_) cut = {.bits = cut.bits, .ties = 1};
  }
  ++pass_;
}

WholeModel WholeModelReader::result() const {
  return {.cuts = cuts_, .zero_is_positive = vote_ >= 0};
}

}  // namespace modicum::tune
