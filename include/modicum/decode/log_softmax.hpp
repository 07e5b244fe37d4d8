// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>

#include <modicum/base/error.hpp>
#include <modicum/ops/reductions.hpp>

namespace modicum {

/// exp(x) in f32 for x <= 0, within 2 units in the last place; 0 below -87.7, where the result would be
/// denormal. NaN stays NaN.
/// Method: Cephes expf, i.e. x = n ln 2 + r with |r| <= ln 2 / 2 and a polynomial for e^r.
inline float exp_nonpositive(float x) noexcept {
  constexpr float kLowest = -88.0f;  // there and below, 2^-127 has all bits zero when it is made by a shift
  constexpr float kLog2E = 1.44269504088896341f;
  constexpr float kLn2High = 0.693359375f;
  constexpr float kLn2Low = -2.12194440e-4f;
  constexpr float kRound = 12582912.0f;  // 1.5 · 2^23: adding it leaves the rounded n in the low bits
  x = x < kLowest ? kLowest : x;
  const float shifted = x * kLog2E + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * kLn2High) - n * kLn2Low;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * std::bit_cast<float>((std::bit_cast<std::uint32_t>(shifted) << 23) + 0x3f800000u);
}

using ops::exp_sum;
using ops::largest;

/// Turns the logits of one row into log-probabilities: log p = (logit - max) - log sum exp(logit - max),
/// rounded to f32 at each step as torch's log_softmax does.
struct LogNormaliser {
  float max = 0.0f;
  float log_sum = 0.0f;

  float operator()(float logit) const noexcept { return (logit - max) - log_sum; }
};

/// The normaliser of `logits`, which may hold -inf (impossible tokens) but neither NaN nor +inf. Throws
/// `InvalidArgument` otherwise, or when every token is impossible.
inline LogNormaliser log_normaliser(std::span<const float> logits) {
  const float max = largest(logits);
  const double sum = exp_sum(logits, max);
  if (!std::isfinite(max) || !std::isfinite(sum)) {
    fail({.op = "log_softmax",
          .what = "logits of " + std::to_string(logits.size()) + " tokens",
          .expected = "finite numbers or -inf, at least one of them finite",
          .got = "a largest logit of " + std::to_string(max) + (std::isfinite(max) ? " and NaN" : ""),
          .todo = "check the model's weights and its dtype for overflow"});
  }
  return {max, static_cast<float>(std::log(sum))};
}

/// Replaces `logits` by their log-probabilities, in place. Errors as `log_normaliser`.
inline void log_softmax(std::span<float> logits) {
  const LogNormaliser log_probability = log_normaliser(logits);
  for (float& value : logits) {
    value = log_probability(value);
  }
}

}  // namespace modicum
