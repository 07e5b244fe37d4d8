// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>

namespace modicum {

/// Sums that a loop keeps side by side, so that no addition waits for the one before it. One fixed order.
inline constexpr std::size_t kLanes = 8;
using Lanes = std::array<double, kLanes>;

inline double sum(const Lanes& lanes) {
  double all = 0;
  for (const double lane : lanes) all += lane;
  return all;
}

/// Calls f(i, lane) for i < count; what f adds up, it adds up by lane.
template <class F>
void for_each_lane(std::size_t count, F&& f) {
  std::size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) f(i + lane, lane);
  }
  for (std::size_t lane = 0; i < count; ++i, ++lane) f(i, lane);
}

}  // namespace modicum
