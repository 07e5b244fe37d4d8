// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <vector>

#include <modicum/tensor/dtype.hpp>

namespace modicum::ops {

/// Keys and values of one layer, each [rows, kv_heads, head_dim].
struct KvCodesShape {
  std::size_t rows = 0;
  std::size_t kv_heads = 0;
  std::size_t head_dim = 0;
  DType dtype = DType::f32;  ///< of the wide elements
  int bits = 8;              ///< or 4, with an even head_dim

  std::size_t width() const { return kv_heads * head_dim; }
  /// Bytes of one token's codes, and of its head's.
  std::size_t row_bytes() const { return kv_heads * head_bytes(); }
  std::size_t head_bytes() const { return head_dim * static_cast<std::size_t>(bits) / 8; }
};

/// Codes and scales where they lie, in the order of `KvCodes`.
struct KvCodesView {
  const std::byte* k = nullptr;
  const std::byte* v = nullptr;
  const f16* k_scales = nullptr;
  const f16* v_scales = nullptr;
};

/// Keys and values of one layer as integers: codes and scales as `KvScales` lays them out.
struct KvCodes {
  std::vector<std::byte> k, v;  ///< [rows][row_bytes]
  std::vector<f16> k_scales;    ///< [⌈rows / kKeyGroup⌉][2 (scale, offset)][kv_heads · head_dim]
  std::vector<f16> v_scales;    ///< [rows][kv_heads][2 (scale, offset)]

  operator KvCodesView() const { return {k.data(), v.data(), k_scales.data(), v_scales.data()}; }
};

/// Rounds wide rows to codes from 0 to 2^bits − 1, keys by channel in groups of kKeyGroup rows, values by
/// token and head (Liu et al. 2024, "KIVI", arXiv:2402.02750, section 3). The offset is the least value,
/// rounded down to f16, and the scale reaches the largest, rounded up to f16, so that the nearest code is
/// within half a scale of each value. Throws `InvalidArgument` where the shape does not fit, and
/// `Unsupported` where a value is not finite or beyond what f16 holds (±65504).
KvCodes quantize_kv(const KvCodesShape& shape, const std::byte* k, const std::byte* v);

/// scale · code + offset in f32, for keys and values [rows, kv_heads, head_dim]: what attention makes of
/// integer runs. The first row begins a group of kKeyGroup rows.
void dequantize_kv(const KvCodesShape& shape, const KvCodesView& codes, float* k, float* v);

}  // namespace modicum::ops
