// SPDX-License-Identifier: Apache-2.0
// Products with `int8_rows` weights in tiles (AMX, TDPBSSD), by the specification of integers.inc: blocks of
// 64 inputs, whose integer sums stay in the tile registers as bf16's do; scales come once, at the end.
#include <algorithm>
#include <bit>
#include <cmath>
#include <concepts>
#include <cstring>

#include <immintrin.h>

#include "kernels.hpp"
#include "target.hpp"

MODICUM_TARGET_BEGIN_512("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c,amx-tile,amx-int8")
namespace modicum::cpu::amx {
namespace {

#include "avx512.inc"
#include "tiles.inc"
// Build on those above.
#define MODICUM_TILE_PRODUCT(c, a, b) _tile_dpbssd(c, a, b)
#include "amx_products.inc"
#undef MODICUM_TILE_PRODUCT

std::size_t group_bytes(std::size_t cols) {
  return padded(cols, kBlockBytes) / kBlockBytes * kTileBytes + 16 * sizeof(float);
}

/// The scales of a group's tokens, behind its tiles.
float* scales_of(void* packed, std::size_t cols, std::size_t group) {
  return reinterpret_cast<float*>(static_cast<std::uint8_t*>(packed) + (group + 1) * group_bytes(cols)) - 16;
}

/// Turns a work's integer C tiles into floats for it.
template <class Work>
struct Scaled {
  const Work& work;
  const WeightView& w;
  const void* x;

  std::size_t steps() const { return work.steps(); }
  Rows first(std::size_t step) const { return work.first(step); }
  Rows second(std::size_t step) const { return work.second(step); }

  void store(std::size_t step, std::size_t g, const float* first_sums, const float* second_sums) const {
    alignas(64) float tiles[2][kTileFloats];
    scale(first(step), g, first_sums, tiles[0]);
    scale(second(step), g, second_sums, tiles[1]);
    work.store(step, g, tiles[0], tiles[1]);
  }

  void scale(const Rows& rows, std::size_t g, const float* sums, float* to) const {
    const auto mask = static_cast<__mmask16>((1u << rows.count) - 1u);
    alignas(64) float w_scales[16];
    dispatch(w.scale_dtype, [&](auto s) {
      _mm512_store_ps(w_scales, load_f32(mask, static_cast<const decltype(s)*>(rows.scales)));
    });
    const __m512 x_scale = _mm512_load_ps(scales_of(const_cast<void*>(x), w.cols, g));
    for (std::size_t o = 0; o < rows.count; ++o) {
      const __m512 value = _mm512_cvtepi32_ps(_mm512_load_si512(sums + o * 16));
      _mm512_store_ps(to + o * 16, _mm512_mul_ps(value, _mm512_mul_ps(_mm512_set1_ps(w_scales[o]), x_scale)));
    }
  }
};

/// silu(gate) · up as rows of f32.
struct GatedToRows : GatedRows {
  void store(std::size_t step, std::size_t g, const float* gate, const float* up) const {
    const std::size_t o = output(step);
    if (o >= task.gate.rows) return;
    __m512i values[16];
    for (std::size_t i = 0; i < 16; ++i)
      values[i] = _mm512_castps_si512(gated_value(task, gate + i * 16, up + i * 16, o + i));
    transpose(values);
    const auto mask = static_cast<__mmask16>((1u << std::min<std::size_t>(16, task.gate.rows - o)) - 1u);
    const std::size_t tokens = std::min(kPackTokens, task.tokens - g * kPackTokens);
    for (std::size_t t = 0; t < tokens; ++t)
      _mm512_mask_storeu_epi32(task.y + (g * kPackTokens + t) * task.gate.rows + o, mask, values[t]);
  }
};

template <class Work>
void run(const Work& work, const WeightView& w, const void* x, std::size_t tokens, void* scratch) {
  const std::size_t groups = padded(tokens, kPackTokens) / kPackTokens;
  multiply_all(Scaled<Work>{work, w, x},
               {static_cast<const std::uint8_t*>(x), w.cols, groups, group_bytes(w.cols)}, scratch);
}

}  // namespace

std::size_t int8_rows_bytes(std::size_t tokens, std::size_t cols) {
  return padded(tokens, kPackTokens) / kPackTokens * group_bytes(cols);
}

void pack_int8_rows(const float* x, std::size_t tokens, std::size_t cols, std::size_t group, void* packed) {
  const float* const first = x + group * kPackTokens * cols;
  const std::size_t count = std::min(tokens - group * kPackTokens, kPackTokens);
  std::uint32_t magnitudes[16] = {};
  for (std::size_t t = 0; t < count; ++t) magnitudes[t] = row_magnitude(first + t * cols, cols);
  auto* tile = static_cast<std::uint8_t*>(packed) + group * group_bytes(cols);
  for (std::size_t k = 0; k < cols; k += kBlockBytes, tile += kTileBytes) {
    __m512i rows[16];
    for (std::size_t t = 0; t < 16; ++t) {
      alignas(64) std::int8_t row[kBlockBytes] = {};
      const RowScale scale(magnitudes[t]);
      for (std::size_t i = k; t < count && i < std::min(cols, k + kBlockBytes); i += 16) {
        _mm_store_si128(reinterpret_cast<__m128i*>(row + (i - k)),
                        _mm512_cvtepi32_epi8(scale.round(first + t * cols + i)));
      }
      rows[t] = _mm512_load_si512(row);
    }
    transpose(rows);
    for (std::size_t i = 0; i < 16; ++i) _mm512_store_si512(tile + i * kBlockBytes, rows[i]);
  }
  float* const to = scales_of(packed, cols, group);
  for (std::size_t t = 0; t < 16; ++t) to[t] = RowScale(magnitudes[t]).scale;
}

void matmul_int8_rows(const MatmulTask& task) {
  run(Outputs{task}, task.w, task.x, task.tokens, task.scratch);
}

void gated_int8_rows(const GatedTask& task) {
  run(GatedToRows{{task}}, task.gate, task.x, task.tokens, task.scratch);
}

}  // namespace modicum::cpu::amx
MODICUM_TARGET_END
