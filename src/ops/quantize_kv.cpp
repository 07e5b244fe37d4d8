// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include <modicum/base/error.hpp>
#include <modicum/ops/attention.hpp>
#include <modicum/ops/quantize_kv.hpp>

namespace modicum::ops {
namespace {

constexpr float kMostF16 = 65504.0f;

void require_shape(const KvCodesShape& shape) {
  if (shape.bits != 4 && shape.bits != 8) {
    fail({.op = "quantize_kv", .what = "bits", .expected = "4 or 8", .got = std::to_string(shape.bits)});
  }
  if (shape.bits == 4 && shape.head_dim % 2 != 0) {
    fail({.op = "quantize_kv",
          .what = "head_dim",
          .expected = "an even number for codes of 4 bits",
          .got = std::to_string(shape.head_dim)});
  }
  if (!is_float(shape.dtype)) {
    fail({.op = "quantize_kv",
          .what = "dtype",
          .expected = "f32, bf16 or f16",
          .got = std::string(name_of(shape.dtype))});
  }
}

/// The largest f16 that is not above x, |x| ≤ kMostF16. Neighbouring numbers have neighbouring bits.
f16 rounded_down(float x) {
  f16 y = to_f16(x);
  if (to_f32(y) > x) y.bits = static_cast<std::uint16_t>((y.bits & 0x8000u) != 0 ? y.bits + 1 : y.bits - 1);
  return y;
}

/// The smallest f16 that is not below x ≥ 0.
f16 rounded_up(float x) {
  f16 y = to_f16(x);
  if (to_f32(y) < x) ++y.bits;
  return y;
}

/// What the values of a channel or a token share.
struct Affine {
  f16 scale, offset;

  float value(unsigned code) const { return to_f32(scale) * static_cast<float>(code) + to_f32(offset); }
};

/// Least and largest of the values that `add` saw.
struct Range {
  float least = std::numeric_limits<float>::infinity();
  float most = -std::numeric_limits<float>::infinity();
  bool fits = true;  ///< in f16

  void add(float value) {
    fits = fits && std::fabs(value) <= kMostF16;
    least = value < least ? value : least;
    most = value > most ? value : most;
  }
  Affine affine(int bits) const {
    if (!fits) {
      fail<Unsupported>({.op = "quantize_kv",
                         .what = "keys or values",
                         .expected = "finite numbers within ±65504, which their f16 scales can hold",
                         .got = "others between " + std::to_string(least) + " and " + std::to_string(most),
                         .todo = "keep them in their wide dtype"});
    }
    const f16 offset = rounded_down(least);
    return {rounded_up((most - to_f32(offset)) / static_cast<float>((1 << bits) - 1)), offset};
  }
};

/// Scales and offsets of one head's elements, as floats.
struct HeadScales {
  explicit HeadScales(std::size_t head_dim) : scale(head_dim), offset(head_dim) {}
  void set(std::size_t d, const Affine& affine) {
    scale[d] = to_f32(affine.scale);
    offset[d] = to_f32(affine.offset);
  }
  std::vector<float> scale, offset;
};

/// Codes of one head's row.
template <class T>
void put_head(const KvCodesShape& shape, const T* x, const HeadScales& scales, std::byte* to) {
  const auto most = static_cast<float>((1 << shape.bits) - 1);
  const std::size_t bytes = shape.head_bytes();
  for (std::size_t d = 0; d < shape.head_dim; ++d) {
    const float step = scales.scale[d] == 0.0f ? 1.0f : scales.scale[d];
    const float steps = (to_f32(x[d]) - scales.offset[d]) / step + 0.5f;
    const auto code = static_cast<int>(steps < most ? steps : most);
    to[d % bytes] |= static_cast<std::byte>(d < bytes ? code : code << 4);
  }
}

unsigned code_at(const KvCodesShape& shape, const std::byte* head, std::size_t d) {
  const std::size_t bytes = shape.head_bytes();
  const auto byte = std::to_integer<unsigned>(head[d % bytes]);
  return (d < bytes ? byte : byte >> 4) & ((1u << shape.bits) - 1u);
}

template <class T>
void quantize_keys(const KvCodesShape& shape, const T* k, KvCodes& to) {
  const std::size_t width = shape.width();
  std::vector<Range> ranges(width);
  std::vector<HeadScales> heads(shape.kv_heads, HeadScales(shape.head_dim));
  for (std::size_t begin = 0; begin < shape.rows; begin += kKeyGroup) {
    const std::size_t end = std::min(shape.rows, begin + kKeyGroup);
    std::fill(ranges.begin(), ranges.end(), Range{});
    for (std::size_t r = begin; r < end; ++r)
      for (std::size_t c = 0; c < width; ++c) ranges[c].add(to_f32(k[r * width + c]));
    f16* const scales = to.k_scales.data() + begin / kKeyGroup * 2 * width;
    for (std::size_t c = 0; c < width; ++c) {
      const Affine affine = ranges[c].affine(shape.bits);
      scales[c] = affine.scale;
      scales[width + c] = affine.offset;
      heads[c / shape.head_dim].set(c % shape.head_dim, affine);
    }
    for (std::size_t i = begin * shape.kv_heads; i < end * shape.kv_heads; ++i)
      put_head(shape, k + i * shape.head_dim, heads[i % shape.kv_heads],
               to.k.data() + i * shape.head_bytes());
  }
}

template <class T>
void quantize_values(const KvCodesShape& shape, const T* v, KvCodes& to) {
  HeadScales scales(shape.head_dim);
  for (std::size_t i = 0; i < shape.rows * shape.kv_heads; ++i, v += shape.head_dim) {
    Range range;
    for (std::size_t d = 0; d < shape.head_dim; ++d) range.add(to_f32(v[d]));
    const Affine affine = range.affine(shape.bits);
    to.v_scales[2 * i] = affine.scale;
    to.v_scales[2 * i + 1] = affine.offset;
    for (std::size_t d = 0; d < shape.head_dim; ++d) scales.set(d, affine);
    put_head(shape, v, scales, to.v.data() + i * shape.head_bytes());
  }
}

}  // namespace

KvCodes quantize_kv(const KvCodesShape& shape, const std::byte* k, const std::byte* v) {
  require_shape(shape);
  KvCodes to;
  to.k.resize(shape.rows * shape.row_bytes());
  to.v.resize(to.k.size());
  to.k_scales.resize((shape.rows + kKeyGroup - 1) / kKeyGroup * 2 * shape.width());
  to.v_scales.resize(shape.rows * shape.kv_heads * 2);
  dispatch(shape.dtype, [&](auto t) {
    using T = decltype(t);
    quantize_keys(shape, reinterpret_cast<const T*>(k), to);
    quantize_values(shape, reinterpret_cast<const T*>(v), to);
  });
  return to;
}

void dequantize_kv(const KvCodesShape& shape, const KvCodesView& codes, float* k, float* v) {
  require_shape(shape);
  const std::size_t width = shape.width();
  for (std::size_t i = 0; i < shape.rows * shape.kv_heads; ++i) {
    const std::byte* const of_key = codes.k + i * shape.head_bytes();
    const std::byte* const of_value = codes.v + i * shape.head_bytes();
    const f16* const k_scales =
        codes.k_scales + i / shape.kv_heads / kKeyGroup * 2 * width + i % shape.kv_heads * shape.head_dim;
    const Affine value{codes.v_scales[2 * i], codes.v_scales[2 * i + 1]};
    for (std::size_t d = 0; d < shape.head_dim; ++d) {
      *k++ = Affine{k_scales[d], k_scales[width + d]}.value(code_at(shape, of_key, d));
      *v++ = value.value(code_at(shape, of_value, d));
    }
  }
}

}  // namespace modicum::ops
