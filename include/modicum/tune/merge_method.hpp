// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstddef>
#include <vector>

#include <modicum/base/thread_pool.hpp>
#include <modicum/tune/tensor_tiles.hpp>

namespace modicum::tune {

/// What a method makes of a tile: the elements of the result, or what is to be added to those of the model
/// that is built upon.
enum class Outcome { value, difference };

/// A way of merging, for one tensor: it gathers what it must know of the whole tensor, then makes each
/// element from those of the models at the same place. Arithmetic is f32, sums over a tensor are f64.
template <class M>
concept MergeMethod = requires(M method, const M& ready, const TensorReader& tensor, ThreadPool& pool,
                               const Tile& tile, std::vector<float>& scratch, float* out) {
  { M::kOutcome } -> std::convertible_to<Outcome>;
  method.prepare(tensor, pool);
  ready.merge(tile, scratch, out);
};

}  // namespace modicum::tune
