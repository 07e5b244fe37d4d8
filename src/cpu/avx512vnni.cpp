// SPDX-License-Identifier: Apache-2.0
// Integer dot products (VPDPBUSD): four products of unsigned weights and signed activations a lane, summed
// exactly. Everything else is AVX-512's.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include <immintrin.h>

#include "kernels.hpp"
#include "target.hpp"

MODICUM_TARGET_BEGIN_512("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")
namespace modicum::cpu::avx512vnni {

#include "avx512.inc"
#include "tiles.inc"
// Builds on those above.
#include "integer_tiles.inc"
// Builds on that.
#include "integer_rows.inc"
// And on that.
#include "int8_rows.inc"

/// 16 × 16 sums in registers, 8 outputs at a time: each four bytes of weights are broadcast once, each vector
/// of activations is loaded once for 8 outputs, so that a multiply-add costs 9/8 loads of the two that a
/// cycle has.
struct TileKernel {
  static constexpr bool kSigned = false;

  template <DType dtype>
  static void multiply(const IntegerPanel& w, const TokenTile* x, std::size_t groups, const Ahead& ahead,
                       std::size_t ahead_step, float* c) {
    for (int o = 0; o < 16; o += 8) {
      __m512 sums[8];
      for (int i = 0; i < 8; ++i) sums[i] = _mm512_load_ps(c + (o + i) * 16);
      for (std::size_t g = 0; g < groups; ++g) {
        if (o == 0 && g * ahead_step % 64 == 0) ahead.fetch(g * ahead_step);
        add_group<dtype>(w.w + g * w.step + static_cast<std::size_t>(o) * w.stride, w.stride,
                         w.scales + g * 16 + o, x[g], sums);
      }
      for (int i = 0; i < 8; ++i) _mm512_store_ps(c + (o + i) * 16, sums[i]);
    }
  }

  template <DType dtype>
  static void add_group(const std::uint8_t* w, std::size_t stride, const float* scales, const TokenTile& x,
                        __m512 (&sums)[8]) {
    __m512i dots[8];
    // Two's complement becomes unsigned by an offset of 128, as uint8 has it from the start.
    const __m512i flip = dtype == DType::int8 ? _mm512_set1_epi8(-128) : _mm512_setzero_si512();
    for (int i = 0; i < 8; ++i) dots[i] = _mm512_load_si512(x.correction);
    for (std::size_t k = 0; k < 8; ++k) {
      const __m512i inputs = _mm512_load_si512(x.x[k]);
      for (std::size_t i = 0; i < 8; ++i) {
        std::int32_t four;
        std::memcpy(&four, w + i * stride + 4 * k, 4);
        dots[i] = _mm512_dpbusd_epi32(dots[i], _mm512_xor_si512(_mm512_set1_epi32(four), flip), inputs);
      }
    }
    const __m512 x_scale = _mm512_load_ps(x.scale);
    for (int i = 0; i < 8; ++i) {
      const __m512 scale = _mm512_mul_ps(_mm512_set1_ps(scales[i]), x_scale);
      sums[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[i]), scale, sums[i]);
    }
  }
};

std::size_t packed_bytes(DType dtype, std::size_t tokens, std::size_t cols) {
  if (is_float(dtype)) return avx512_kernels().packed_bytes(dtype, tokens, cols);
  if (dtype == DType::int8_rows) return tokens * whole_row_bytes(cols);
  return tokens <= kFewTokens ? integer_token_bytes(tokens, cols) : integer_tile_bytes(tokens, cols);
}

void pack(DType dtype, const float* x, std::size_t tokens, std::size_t cols, std::size_t group,
          void* packed) {
  if (is_float(dtype)) return avx512_kernels().pack(dtype, x, tokens, cols, group, packed);
  if (dtype == DType::int8_rows) {
    const std::size_t end = std::min(tokens, (group + 1) * kPackTokens);
    for (std::size_t t = group * kPackTokens; t < end; ++t)
      pack_int8_row(x + t * cols, cols, static_cast<std::int8_t*>(packed) + t * whole_row_bytes(cols));
    return;
  }
  if (tokens <= kFewTokens) return pack_token_rows(dtype, x, tokens, cols, packed);
  pack_token_tiles(dtype, x, tokens, cols, group, packed);
}

void matmul(const MatmulTask& task) {
  if (is_float(task.w.dtype)) return avx512_kernels().matmul(task);
  if (task.w.dtype == DType::int8_rows) return matmul_int8_rows(task);
  if (task.tokens <= kFewTokens) return matmul_few(task);
  const Outputs outputs{task};
  IntegerProducts<TileKernel, Outputs>(outputs, task.w, task.x, task.tokens, task.scratch).run();
}

void gated(const GatedTask& task) {
  const GatedIntegers work(task);
  IntegerProducts<TileKernel, GatedIntegers>(work, task.gate, task.x, task.tokens, task.scratch).run();
}

Fusion fuses(DType dtype, DType next, std::size_t tokens) {
  const auto by_groups = [](DType d) { return !is_float(d) && d != DType::int8_rows; };
  return tokens > kFewTokens && by_groups(dtype) && by_groups(next) ? Fusion::packed : Fusion::none;
}

void silu_mul(float* gate, const float* up, std::size_t n) {
  for (std::size_t i = 0; i < n; i += 16) {
    const auto mask = static_cast<__mmask16>((1u << std::min<std::size_t>(n - i, 16)) - 1u);
    const __m512 a = _mm512_maskz_loadu_ps(mask, gate + i);
    _mm512_mask_storeu_ps(gate + i, mask, _mm512_mul_ps(silu(a), _mm512_maskz_loadu_ps(mask, up + i)));
  }
}

}  // namespace modicum::cpu::avx512vnni
MODICUM_TARGET_END

namespace modicum::cpu {

const KernelTable& avx512vnni_kernels() {
  static const KernelTable table = [] {
    KernelTable t = avx512_kernels();
    t.isa = ops::Isa::avx512vnni;
    t.packed_bytes = avx512vnni::packed_bytes;
    t.pack = avx512vnni::pack;
    t.matmul = avx512vnni::matmul;
    t.silu_mul = avx512vnni::silu_mul;
    t.gated = avx512vnni::gated;
    t.fuses = avx512vnni::fuses;
    return t;
  }();
  return table;
}

}  // namespace modicum::cpu
