// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

#include <modicum/tune/merge_method.hpp>

namespace modicum::tune {

/// Σ w θ / Σ w, or without the divisor: model soups (Wortsman et al. 2022, arXiv:2203.05482).
class LinearMerge {
 public:
  static constexpr Outcome kOutcome = Outcome::value;

  LinearMerge(std::vector<float> weights, bool normalize) : weights_(std::move(weights)) {
    if (!normalize) return;
    divisor_ = 0;
    for (const float weight : weights_) divisor_ += weight;
  }

  void prepare(const TensorReader&, ThreadPool&) {}

  void merge(const Tile& tile, std::vector<float>&, float* out) const {
    for (std::size_t i = 0; i < tile.count; ++i) out[i] = tile.models[0][i] * weights_[0];
    for (std::size_t m = 1; m < tile.models.size(); ++m) {
      for (std::size_t i = 0; i < tile.count; ++i) out[i] += tile.models[m][i] * weights_[m];
    }
    if (divisor_ == 1) return;
    for (std::size_t i = 0; i < tile.count; ++i) out[i] /= divisor_;
  }

 private:
  std::vector<float> weights_;
  float divisor_ = 1;
};
static_assert(MergeMethod<LinearMerge>);

}  // namespace modicum::tune
