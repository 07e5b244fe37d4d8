// SPDX-License-Identifier: Apache-2.0
// Keys and values as numbers, whichever way a segment keeps them.
#pragma once

#include <cstddef>
#include <vector>

#include <modicum/cag/manifest.hpp>
#include <modicum/kv/storage.hpp>
#include <modicum/ops/quantize_kv.hpp>

namespace modicum::cag {

/// Keys and values of one layer, f32 [rows, width] each.
struct LayerRows {
  std::vector<float> k, v;
};

/// Rows [first, first + count) of a segment's layer.
LayerRows layer_rows(const Manifest& manifest, const KvSegment& segment, std::size_t layer, std::size_t first,
                     std::size_t count);

/// `count` elements of `dtype` as f32.
std::vector<float> widened(DType dtype, const std::byte* values, std::size_t count);

/// Of so many rows of one layer in `bits` a number.
ops::KvCodesShape codes_shape(const Manifest& manifest, std::size_t rows, int bits);

}  // namespace modicum::cag
