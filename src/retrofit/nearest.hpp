// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace modicum::retrofit {

/// To an integer, ties to even, for magnitudes below 2^22. Unlike nearbyint it becomes vector code
/// everywhere.
inline float nearest(float x) {
  constexpr float kShift = 12582912.0f;  // 1.5 · 2^23
  return (x + kShift) - kShift;
}

/// `nearest`(weight / scale) within −half … half − 1, half = 2^(bits−1).
inline std::int8_t nearest_integer(float weight, float scale, float half) {
  return static_cast<std::int8_t>(nearest(std::min(std::max(weight / scale, -half), half - 1.0f)));
}

}  // namespace modicum::retrofit
