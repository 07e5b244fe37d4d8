// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstddef>
#include <span>

namespace modicum {

/// Cosines and sines of one position's angles [frequencies], times `scale` (yarn's attention factor).
inline void rope_angles(std::span<const float> inverse_frequencies, std::size_t position, float scale,
                        float* cos, float* sin) {
  for (std::size_t i = 0; i < inverse_frequencies.size(); ++i) {
    // The angle is rounded to f32 as in transformers; its cosine is then exact to f32.
    const double angle = static_cast<double>(static_cast<float>(position) * inverse_frequencies[i]);
    cos[i] = static_cast<float>(std::cos(angle)) * scale;
    sin[i] = static_cast<float>(std::sin(angle)) * scale;
  }
}

}  // namespace modicum
