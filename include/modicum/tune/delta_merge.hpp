// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include <modicum/tune/merge_method.hpp>

namespace modicum::tune {

/// How a model's differences from the base are thinned out before they are combined.
template <class S>
concept Sparsifier = requires(S thin, const S& ready, const TensorReader& tensor, ThreadPool& pool,
                              std::size_t model, const Tile& tile, float* delta) {
  thin.prepare(tensor, pool);
  ready.apply(model, tile, delta);
};

/// How the differences of several models become one: deltas [models][count] → out [count]. The deltas may be
/// changed, and there is room [2 · count] to work in.
template <class C>
concept Consensus = requires(const C& consensus, std::span<float* const> deltas, std::size_t count,
                             float* room, float* out) { consensus.combine(deltas, count, room, out); };

/// Leaves all differences as they are.
struct KeepAll {
  void prepare(const TensorReader&, ThreadPool&) {}
  void apply(std::size_t, const Tile&, float*) const {}
};

/// Σ w δ, over Σ w where `normalize` says so (then a sum of weights below 1e-8 counts as 1).
class WeightedSum {
 public:
  WeightedSum(std::vector<float> weights, bool normalize) : weights_(std::move(weights)) {
    if (!normalize) return;
    float sum = 0;
    for (const float weight : weights_) sum += weight;
    if (std::abs(sum) >= 1e-8f) divisor_ = sum;
  }

  void combine(std::span<float* const> deltas, std::size_t count, float*, float* out) const {
    for (std::size_t i = 0; i < count; ++i) out[i] = deltas[0][i] * weights_[0];
    for (std::size_t m = 1; m < deltas.size(); ++m) {
      for (std::size_t i = 0; i < count; ++i) out[i] += deltas[m][i] * weights_[m];
    }
    if (divisor_ == 1) return;
    for (std::size_t i = 0; i < count; ++i) out[i] /= divisor_;
  }

 private:
  std::vector<float> weights_;
  float divisor_ = 1;
};

/// λ · consensus(sparsified differences from the base), to be added to the model that is built upon.
template <Sparsifier S, Consensus C>
class DeltaMerge {
 public:
  static constexpr Outcome kOutcome = Outcome::difference;

  DeltaMerge(S sparsifier, C consensus, float lambda)
      : sparsifier_(std::move(sparsifier)), consensus_(std::move(consensus)), lambda_(lambda) {}

  void prepare(const TensorReader& tensor, ThreadPool& pool) { sparsifier_.prepare(tensor, pool); }

  void merge(const Tile& tile, std::vector<float>& scratch, float* out) const {
    const std::size_t models = tile.models.size();
    scratch.resize((models + 2) * tile.count);
    std::vector<float*> deltas(models);
    for (std::size_t m = 0; m < models; ++m) {
      float* const delta = deltas[m] = scratch.data() + m * tile.count;
      for (std::size_t i = 0; i < tile.count; ++i) delta[i] = tile.models[m][i] - tile.base[i];
      sparsifier_.apply(m, tile, delta);
    }
    consensus_.combine(deltas, tile.count, scratch.data() + models * tile.count, out);
    if (lambda_ == 1) return;
    for (std::size_t i = 0; i < tile.count; ++i) out[i] *= lambda_;
  }

  const S& sparsifier() const noexcept { return sparsifier_; }

 private:
  S sparsifier_;
  C consensus_;
  float lambda_;
};

}  // namespace modicum::tune
