// SPDX-License-Identifier: Apache-2.0
#include <modicum/ops/reductions.hpp>

#include "../cpu/kernels.hpp"

namespace modicum::ops {

double exp_sum(std::span<const float> x, float shift) {
  return cpu::kernels().exp_sum(x.data(), x.size(), shift);
}

float largest(std::span<const float> x) {
  return cpu::kernels().largest(x.data(), x.size());
}

}  // namespace modicum::ops
