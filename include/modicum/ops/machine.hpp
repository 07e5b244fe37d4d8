// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

#include <modicum/base/thread_pool.hpp>

namespace modicum::ops {

/// What this machine can do at most with all threads of a pool and the active instruction set. A multiply-add
/// counts as two operations; operands are in registers.
struct MachineLimits {
  double read = 0;  ///< bytes/s of `read_bandwidth`
  double f32 = 0;   ///< operations/s of f32 multiply-adds
  double bf16 = 0;  ///< of bf16 products with f32 sums; without such instructions as f32
  double int8 = 0;  ///< of int8 products with int32 sums; without such instructions as f32
};

/// Measures for some tenths of a second.
MachineLimits machine_limits(ThreadPool& pool);

/// Bytes/s of reading `size` bytes of memory once with all threads: the best of some passes over it, in large
/// pages where the system has them. Choose the size of what will be read: less may lie in a cache.
double read_bandwidth(ThreadPool& pool, std::size_t size = std::size_t{256} << 20);

}  // namespace modicum::ops
