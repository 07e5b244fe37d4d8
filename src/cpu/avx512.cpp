// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include <immintrin.h>

#include "kernels.hpp"
#include "target.hpp"

#define MODICUM_AVX512 "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"

MODICUM_TARGET_BEGIN_512(MODICUM_AVX512)
namespace modicum::cpu::avx512 {

using ops::kKeyTile;

#include "avx512.inc"

struct V {
  using F = __m512;
  static constexpr std::size_t width = 16;
  static constexpr int rows = 6;
  static F zero() { return _mm512_setzero_ps(); }
  static F set1(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static F load(const bf16* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  static F load(const f16* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static void transpose(F (&r)[width]) {
    __m512i bits[width];
    for (std::size_t i = 0; i < width; ++i) bits[i] = _mm512_castps_si512(r[i]);
    avx512::transpose(bits);
    for (std::size_t i = 0; i < width; ++i) r[i] = _mm512_castsi512_ps(bits[i]);
  }
  static float fma1(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
};

#include "generic.inc"
// Builds on both.
#include "dot_rows.inc"

void matmul(const MatmulTask& task) {
  if (!is_float(task.w.dtype)) return matmul_integers(task);
  dispatch(task.w.dtype, [&](auto w) { matmul_by_rows<F32Dot<decltype(w)>>(task); });
}

}  // namespace modicum::cpu::avx512
MODICUM_TARGET_END

namespace modicum::cpu {

const KernelTable& avx512_kernels() {
  using namespace avx512;
  static const KernelTable table{ops::Isa::avx512, packed_bytes_f32, pack_f32, matmul, load_keys, scores,
                                 accumulate,       rms_norm,         silu_mul, rope,   exp_sum,   largest};
  return table;
}

}  // namespace modicum::cpu
