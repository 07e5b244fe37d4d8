// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

#include <modicum/base/thread_pool.hpp>

/// What this machine can do at most, measured once in this process with all threads of a pool.
struct MachineLimits {
  double read = 0;      ///< bytes/s of reading 256 MiB
  double flop_f32 = 0;  ///< operations/s of f32 multiply-adds in registers
  double flop_bf16 =
      0;  ///< likewise of bf16 with f32 sums, by the widest instructions there are; else as f32
};

const MachineLimits& machine_limits(modicum::ThreadPool& pool);
