// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

namespace modicum::ops {

/// Σ e^(x[i] − shift), where no element exceeds `shift` by more than 88: f32 in 16 lanes within a block of
/// 256 elements, f64 across blocks, always in that order. -inf adds nothing, NaN makes the sum NaN.
double exp_sum(std::span<const float> x, float shift);

/// The largest element; -inf when there are none. NaN is passed over.
float largest(std::span<const float> x);

}  // namespace modicum::ops
