// SPDX-License-Identifier: Apache-2.0
#include "rows.hpp"

#include <algorithm>
#include <cstring>
#include <span>

#include <modicum/cag/build.hpp>
#include <modicum/ops/attention.hpp>

namespace modicum::cag {
namespace {

LayerRows decoded(const Manifest& manifest, const KvSegment& segment, std::size_t layer, std::size_t first,
                  std::size_t count) {
  const ops::KvScales& scales = *segment.scales;
  // The rows of a group share the scales of their keys.
  const std::size_t begin = first / ops::kKeyGroup * ops::kKeyGroup;
  const ops::KvCodesShape shape = codes_shape(manifest, first + count - begin, scales.bits);
  const std::size_t at = layer * segment.layer_stride + begin * shape.row_bytes();
  const ops::KvCodesView codes{
      .k = segment.k + at,
      .v = segment.v + at,
      .k_scales = scales.k + layer * scales.k_stride + begin / ops::kKeyGroup * 2 * shape.width(),
      .v_scales = scales.v + layer * scales.v_stride + begin * 2 * shape.kv_heads};
  LayerRows rows{std::vector<float>(shape.rows * shape.width()),
                 std::vector<float>(shape.rows * shape.width())};
  ops::dequantize_kv(shape, codes, rows.k.data(), rows.v.data());
  const auto before = static_cast<std::ptrdiff_t>((first - begin) * shape.width());
  rows.k.erase(rows.k.begin(), rows.k.begin() + before);
  rows.v.erase(rows.v.begin(), rows.v.begin() + before);
  return rows;
}

void narrow(DType dtype, std::span<const float> values, std::byte* to) {
  dispatch(dtype, [&](auto t) {
    using T = decltype(t);
    std::ranges::transform(values, reinterpret_cast<T*>(to), [](float value) { return from_f32<T>(value); });
  });
}

}  // namespace

ops::KvCodesShape codes_shape(const Manifest& manifest, std::size_t rows, int bits) {
  return {.rows = rows,
          .kv_heads = manifest.kv_heads,
          .head_dim = manifest.head_dim(),
          .dtype = manifest.shape.dtype,
          .bits = bits};
}

std::vector<float> widened(DType dtype, const std::byte* values, std::size_t count) {
  std::vector<float> out(count);
  dispatch(dtype, [&](auto t) {
    using T = decltype(t);
    const T* from = reinterpret_cast<const T*>(values);
    for (std::size_t i = 0; i < count; ++i) out[i] = to_f32(from[i]);
  });
  return out;
}

LayerRows layer_rows(const Manifest& manifest, const KvSegment& segment, std::size_t layer, std::size_t first,
                     std::size_t count) {
  if (segment.scales) return decoded(manifest, segment, layer, first, count);
  const KvShape& shape = manifest.shape;
  const std::size_t at = layer * segment.layer_stride + first * shape.row_bytes();
  return {widened(shape.dtype, segment.k + at, count * shape.width),
          widened(shape.dtype, segment.v + at, count * shape.width)};
}

void copy_rows(const KnowledgeFile& file, std::byte* k, std::byte* v) {
  const Manifest& m = file.manifest();
  const std::size_t row = m.shape.row_bytes();
  for (std::size_t layer = 0; layer < m.shape.layers; ++layer) {
    for (std::size_t i = 0; i < m.segments.size(); ++i) {
      const KvSegment& segment = *file.segments()[i];
      const std::size_t to = (layer * m.tokens + m.segments[i].token_begin) * row;
      if (!segment.scales) {
        std::memcpy(k + to, segment.k + layer * segment.layer_stride, segment.rows * row);
        std::memcpy(v + to, segment.v + layer * segment.layer_stride, segment.rows * row);
        continue;
      }
      // A group at a time: f32 of a whole layer may take much memory.
      for (std::size_t first = 0; first < segment.rows; first += ops::kKeyGroup) {
        const LayerRows rows =
            layer_rows(m, segment, layer, first, std::min(ops::kKeyGroup, segment.rows - first));
        narrow(m.shape.dtype, rows.k, k + to + first * row);
        narrow(m.shape.dtype, rows.v, v + to + first * row);
      }
    }
  }
}

}  // namespace modicum::cag
