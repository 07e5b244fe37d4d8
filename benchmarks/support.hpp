// SPDX-License-Identifier: Apache-2.0
// What the benchmarks of kernels share.
#pragma once

#include <cstdint>

#include <modicum/base/thread_pool.hpp>
#include <modicum/ops/machine.hpp>

/// Over every processor that this process may use.
inline modicum::ThreadPool& pool() {
  static modicum::ThreadPool all;
  return all;
}

/// Measured once, in this process.
inline const modicum::ops::MachineLimits& machine() {
  static const modicum::ops::MachineLimits limits = modicum::ops::machine_limits(pool());
  return limits;
}

/// The same numbers in every run, at the cost of a multiply-add each.
struct Random {
  std::uint32_t state = 1;

  std::uint32_t bits() { return state = state * 1664525u + 1013904223u; }
  /// From −1 to 1.
  float uniform() { return static_cast<float>(bits() >> 8) * 0x1p-23f - 1.0f; }
};
