// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include <immintrin.h>

#include "kernels.hpp"
#include "target.hpp"

MODICUM_TARGET_BEGIN("avx2,fma,f16c")
namespace modicum::cpu::avx2 {

using ops::kKeyTile;

struct V {
  using F = __m256;
  static constexpr std::size_t width = 8;
  static constexpr int rows = 2;
  static F zero() { return _mm256_setzero_ps(); }
  static F set1(float x) { return _mm256_set1_ps(x); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static F load(const bf16* p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static F load(const f16* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static void store(float* p, F v) { _mm256_storeu_ps(p, v); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static float sum(F v) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
  }
  static void transpose(F (&r)[width]) {
    F a[8];
    for (int i = 0; i < 8; i += 2) {
      a[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
      a[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
      r[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
      r[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
      r[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
      r[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
      a[i] = _mm256_permute2f128_ps(r[i], r[4 + i], 0x20);
      a[4 + i] = _mm256_permute2f128_ps(r[i], r[4 + i], 0x31);
    }
    for (int i = 0; i < 8; ++i) r[i] = a[i];
  }
  static float fma1(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
};

#include "generic.inc"
// Builds on that.
#include "matmul.inc"

}  // namespace modicum::cpu::avx2
MODICUM_TARGET_END

namespace modicum::cpu {

const KernelTable& avx2_kernels() {
  using namespace avx2;
  static const KernelTable table{ops::Isa::avx2, packed_bytes_f32, pack_f32, matmul, load_keys, scores,
                                 accumulate,     rms_norm,         silu_mul, rope,   exp_sum,   largest};
  return table;
}

}  // namespace modicum::cpu
