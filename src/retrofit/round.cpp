// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>

#include <modicum/retrofit/round.hpp>

#include "nearest.hpp"

namespace modicum::retrofit {
namespace {

constexpr std::size_t kLanes = 8;
/// Candidates divide the largest weight by 2^(bits−1) · t, with t = (first … last, every step) / 64. With few
/// levels it can pay to clip that weight (t above 1 does not reach it, t below 1 reaches further); with many
/// it never does, so there the search only fits the grid. On trained and on Gaussian weights in groups of 32,
/// four bits have 14 % less error so than with compressed-tensors' scale (largest magnitude over 7.5) and 5 %
/// less than with llama.cpp's (t = 1); eight bits 10 % and 8 % less. Finer or wider steps gain little more.
struct Candidates {
  int first, last, step;
};

Candidates candidates(std::size_t bits) {
  return bits <= 5 ? Candidates{52, 80, 2} : Candidates{50, 64, 1};
}

float as_stored(float scale, DType dtype) {
  return dispatch(dtype, [&](auto t) { return to_f32(from_f32<decltype(t)>(scale)); });
}

float epsilon(DType dtype) {
  return dtype == DType::bf16 ? 0x1p-7f : dtype == DType::f16 ? 0x1p-10f : 0x1p-23f;
}

/// The first weight of largest magnitude.
float largest(std::span<const float> weights) {
  float lanes[kLanes] = {};
  for (std::size_t i = 0; i < weights.size(); i += kLanes) {
    for (std::size_t j = 0; j < kLanes; ++j) lanes[j] = std::max(lanes[j], std::abs(weights[i + j]));
  }
  const float most = *std::max_element(lanes, lanes + kLanes);
  return *std::find_if(weights.begin(), weights.end(), [&](float w) { return std::abs(w) == most; });
}

/// Σ (w / scale − q)². Not squared in units of w, which could overflow.
float squared_error(std::span<const float> weights, float inverse, float lowest, float highest) {
  float sums[kLanes] = {};
  for (std::size_t i = 0; i < weights.size(); i += kLanes) {
    for (std::size_t j = 0; j < kLanes; ++j) {
      const float exact = weights[i + j] * inverse;
      const float bounded = std::min(std::max(exact, lowest), highest);
      const float error = exact - nearest(bounded);
      sums[j] += error * error;
    }
  }
  float total = 0.0f;
  for (const float sum : sums) total += sum;
  return total;
}

float best_scale(std::span<const float> weights, std::size_t bits, DType dtype) {
  const float most = largest(weights);
  const auto half = static_cast<float>(1u << (bits - 1));
  float best = epsilon(dtype);
  float least = std::numeric_limits<float>::infinity();
  const auto [first, last, step] = candidates(bits);
  for (int t = first; t <= last; t += step) {
    const float scale = as_stored(-most / (half * static_cast<float>(t) / 64.0f), dtype);
    if (!std::isnormal(scale)) continue;  // zeros, and weights so small that they round to zero
    const float relative = scale / most;
    const float error = squared_error(weights, 1.0f / scale, -half, half - 1.0f) * (relative * relative);
    if (!(error < least)) continue;
    best = scale;
    least = error;
  }
  return best;
}

}  // namespace

float round_group(std::span<const float> weights, std::size_t bits, DType scale_dtype,
                  std::span<std::int8_t> integers) {
  const float scale = best_scale(weights, bits, scale_dtype);
  const auto half = static_cast<float>(1u << (bits - 1));
  for (std::size_t i = 0; i < weights.size(); ++i) integers[i] = nearest_integer(weights[i], scale, half);
  return scale;
}

}  // namespace modicum::retrofit
