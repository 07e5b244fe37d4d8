// SPDX-License-Identifier: Apache-2.0
// bf16 dot products (VDPBF16PS): two products a lane, summed into f32. Everything else is AVX-512's.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include <immintrin.h>

#include "kernels.hpp"
#include "target.hpp"

MODICUM_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")
namespace modicum::cpu::avx512bf16 {

using ops::kKeyTile;

struct Bf16Dot {
  using X = bf16;
  static constexpr std::size_t step = 32;
  static __m512i load_x(const X* x) { return _mm512_loadu_si512(x); }
  static __m512i load_w(const void* w, std::size_t k) {
    return _mm512_loadu_si512(static_cast<const bf16*>(w) + k);
  }
  static __m512i load_w_tail(const void* w, std::size_t k, std::size_t n) {
    return _mm512_maskz_loadu_epi16((1u << n) - 1u, static_cast<const bf16*>(w) + k);
  }
  static __m512 mac(__m512 acc, __m512i x, __m512i w) {
    return _mm512_dpbf16_ps(acc, (__m512bh)x, (__m512bh)w);
  }
  static const void* row(const void* w, std::size_t o, std::size_t cols) {
    return static_cast<const bf16*>(w) + o * cols;
  }
  static const void* at(const void* w, std::size_t k) { return static_cast<const bf16*>(w) + k; }
};

#include "avx512.inc"
#include "dot_rows.inc"

void matmul(const MatmulTask& task) {
  if (task.w.dtype == DType::bf16) return matmul_by_rows<Bf16Dot>(task);
  avx512vnni_kernels().matmul(task);
}

std::size_t packed_bytes(DType dtype, std::size_t tokens, std::size_t cols) {
  if (dtype == DType::bf16) return tokens * padded(cols, kColumnPad) * sizeof(bf16);
  return avx512vnni_kernels().packed_bytes(dtype, tokens, cols);
}

void pack(DType dtype, const float* x, std::size_t tokens, std::size_t cols, std::size_t group,
          void* packed) {
  if (dtype != DType::bf16) return avx512vnni_kernels().pack(dtype, x, tokens, cols, group, packed);
  const std::size_t stride = padded(cols, kColumnPad);
  const std::size_t end = std::min(tokens, (group + 1) * kPackTokens);
  for (std::size_t t = group * kPackTokens; t < end; ++t) {
    bf16* row = static_cast<bf16*>(packed) + t * stride;
    for (std::size_t k = 0; k < cols; ++k) row[k] = to_bf16(x[t * cols + k]);
    for (std::size_t k = cols; k < stride; ++k) row[k] = bf16{};
  }
}

/// 16 × 16 sums in registers; a pair of A's inputs is broadcast, a vector of B's serves R rows.
struct Products {
  template <int J>
  static void rows(const LaneKeys& keys, const bf16* b, std::size_t count, float* c) {
    for (std::size_t j = 0; j < J; ++j, c += 256)
      add<16, 1>(keys.data + j * keys.next_keys, keys.stride, keys.next_block, b, 0, count, true, c);
  }

  template <int J>
  static void columns(const bf16* a, std::size_t lanes, const bf16* b, std::size_t next, std::size_t count,
                      float* c) {
    if (lanes <= 4) return few_columns<J, 4>(a, b, next, count, c);
    if (lanes <= 8) return few_columns<J, 8>(a, b, next, count, c);
    few_columns<J, 16>(a, b, next, count, c);
  }

 private:
  template <int J, int R>
  static void few_columns(const bf16* a, const bf16* b, std::size_t next, std::size_t count, float* c) {
    constexpr int at_once = 16 / R < J ? 16 / R : J;
    for (std::size_t j = 0; j < J; j += at_once, b += at_once * next, c += at_once * 256)
      add<R, at_once>(a, 32, 512, b, next, count, false, c);
  }

  /// c[n][R][16] (+)= Σ_i a[i · a_step] · b[n · b_tile + i · 512], rows of A `stride` apart.
  template <int R, int N>
  static void add(const bf16* a, std::size_t stride, std::size_t a_step, const bf16* b, std::size_t b_tile,
                  std::size_t count, bool fresh, float* c) {
    __m512 sums[N][R];
    for (int n = 0; n < N; ++n)
      for (int r = 0; r < R; ++r)
        sums[n][r] = fresh ? _mm512_setzero_ps() : _mm512_load_ps(c + n * 256 + r * 16);
    for (std::size_t i = 0; i < count; ++i, a += a_step, b += 512) {
      for (std::size_t p = 0; p < 16; ++p) {
        __m512bh columns[N];
        for (std::size_t n = 0; n < N; ++n) columns[n] = (__m512bh)_mm512_load_si512(b + n * b_tile + p * 32);
        for (std::size_t r = 0; r < R; ++r) {
          std::int32_t pair;
          std::memcpy(&pair, a + r * stride + 2 * p, 4);
          for (std::size_t n = 0; n < N; ++n)
            sums[n][r] = _mm512_dpbf16_ps(sums[n][r], columns[n], (__m512bh)_mm512_set1_epi32(pair));
        }
      }
    }
    for (int n = 0; n < N; ++n)
      for (int r = 0; r < R; ++r) _mm512_store_ps(c + n * 256 + r * 16, sums[n][r]);
  }
};

void enter() {}
void leave() {}

#include "attention_lanes.inc"

}  // namespace modicum::cpu::avx512bf16
MODICUM_TARGET_END

namespace modicum::cpu {

const KernelTable& avx512bf16_kernels() {
  static const KernelTable table = [] {
    KernelTable t = avx512vnni_kernels();
    t.isa = ops::Isa::avx512bf16;
    t.packed_bytes = avx512bf16::packed_bytes;
    t.pack = avx512bf16::pack;
    t.matmul = avx512bf16::matmul;
    t.lanes = &avx512bf16::kLaneKernels;
    return t;
  }();
  return table;
}

}  // namespace modicum::cpu
