// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <modicum/tensor/dtype.hpp>

namespace modicum::retrofit {

/// Rounds `weights` to symmetric integers of `bits` (2 to 8) with one scale: q = round(w / scale), ties to
/// even, within −2^(bits−1) … 2^(bits−1) − 1, and w ≈ q · scale. Returns the scale, which `scale_dtype` holds
/// exactly: it is rounded before the integers are, so they belong to the scale that is stored. Weights must
/// be finite; their number is a multiple of 8.
///
/// The scale takes the weight m of largest magnitude to about the most negative integer, of which there is
/// one more (as llama.cpp's q4_0), and so is negative where m is positive: of 15 scales −m / (2^(bits−1) ·
/// t), with t from 13/16 to 5/4 (for 6 bits and more from 25/32 to 1), the one with the least squared error.
/// A group of zeros gets the machine epsilon, as in compressed-tensors.
float round_group(std::span<const float> weights, std::size_t bits, DType scale_dtype,
                  std::span<std::int8_t> integers);

}  // namespace modicum::retrofit
