// SPDX-License-Identifier: Apache-2.0
#include <cstdint>

#if defined(MODICUM_X86)
#include <immintrin.h>
#endif

#include "peak.hpp"

namespace modicum::cpu {
namespace {

typedef float F4 __attribute__((vector_size(16)));

/// 16 accumulators of four lanes: what the baseline can do.
void plain_f32(int steps) {
  F4 sums[16] = {};
  F4 a = {1, 1, 1, 1};
  for (int i = 0; i < steps; ++i) {
    for (F4& sum : sums) sum = sum * a + a;
#if defined(MODICUM_X86)
    asm volatile("" : "+x"(a));
#else
    asm volatile("" : "+w"(a));
#endif
  }
  for (const F4& sum : sums) asm volatile("" ::"m"(sum));
}

#if defined(MODICUM_X86)
/// The asm statements keep the compiler from folding equal steps into one.
[[gnu::target("avx2,fma")]] void avx2_f32(int steps) {
  __m256 sums[12];
  for (auto& sum : sums) sum = _mm256_setzero_ps();
  __m256 a = _mm256_set1_ps(1.0f);
  for (int i = 0; i < steps; ++i) {
    for (auto& sum : sums) sum = _mm256_fmadd_ps(a, a, sum);
    asm volatile("" : "+x"(a));
  }
  for (auto& sum : sums) asm volatile("" ::"x"(sum));
}

/// Without VNNI: bytes to words (VPMADDUBSW), words to sums (VPMADDWD), and an addition.
[[gnu::target("avx2")]] void avx2_int8(int steps) {
  __m256i sums[12];
  for (auto& sum : sums) sum = _mm256_setzero_si256();
  __m256i a = _mm256_set1_epi8(1);
  __m256i ones = _mm256_set1_epi16(1);
  for (int i = 0; i < steps; ++i) {
    for (auto& sum : sums) {
      asm volatile("" : "+x"(a));
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, a), ones));
    }
  }
  for (auto& sum : sums) asm volatile("" ::"x"(sum));
}

[[gnu::target("avx512f")]] void avx512_f32(int steps) {
  __m512 sums[16];
  for (auto& sum : sums) sum = _mm512_setzero_ps();
  __m512 a = _mm512_set1_ps(1.0f);
  for (int i = 0; i < steps; ++i) {
    for (auto& sum : sums) sum = _mm512_fmadd_ps(a, a, sum);
    asm volatile("" : "+v"(a));
  }
  for (auto& sum : sums) asm volatile("" ::"v"(sum));
}

[[gnu::target("avx512f,avx512bw")]] void avx512_int8(int steps) {
  __m512i sums[16];
  for (auto& sum : sums) sum = _mm512_setzero_si512();
  __m512i a = _mm512_set1_epi8(1);
  __m512i ones = _mm512_set1_epi16(1);
  for (int i = 0; i < steps; ++i) {
    for (auto& sum : sums) {
      asm volatile("" : "+v"(a));
      sum = _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(a, a), ones));
    }
  }
  for (auto& sum : sums) asm volatile("" ::"v"(sum));
}

[[gnu::target("avx512f,avx512vnni")]] void vnni_int8(int steps) {
  __m512i sums[16];
  for (auto& sum : sums) sum = _mm512_setzero_si512();
  __m512i a = _mm512_set1_epi8(1);
  for (int i = 0; i < steps; ++i) {
    for (auto& sum : sums) sum = _mm512_dpbusd_epi32(sum, a, a);
    asm volatile("" : "+v"(a));
  }
  for (auto& sum : sums) asm volatile("" ::"v"(sum));
}

[[gnu::target("avx512f,avx512bf16")]] void avx512_bf16(int steps) {
  __m512 sums[16];
  for (auto& sum : sums) sum = _mm512_setzero_ps();
  __m512i a = _mm512_set1_epi16(0x3f80);
  for (int i = 0; i < steps; ++i) {
    for (auto& sum : sums) sum = _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)a);
    asm volatile("" : "+v"(a));
  }
  for (auto& sum : sums) asm volatile("" ::"v"(sum));
}

struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t reserved[15] = {};
  std::uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

constexpr TileConfig kTiles;

[[gnu::target("amx-tile,amx-bf16")]] void amx_bf16(int steps) {
  _tile_loadconfig(&kTiles);
  for (int i = 0; i < steps; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
}

[[gnu::target("amx-tile,amx-int8")]] void amx_int8(int steps) {
  _tile_loadconfig(&kTiles);
  for (int i = 0; i < steps; ++i) {
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  _tile_release();
}
#endif

}  // namespace

Chains chains(ops::Isa isa) {
  // Accumulators · lanes · 2.
  Chain f32{plain_f32, 16 * 4 * 2};
  Chains found{f32, f32, f32};
#if defined(MODICUM_X86)
  using ops::Isa;
  if (isa >= Isa::avx2) f32 = {avx2_f32, 12 * 8 * 2};
  if (isa >= Isa::avx512) f32 = {avx512_f32, 16 * 16 * 2};
  found = {f32, f32, f32};
  if (isa >= Isa::avx2) found.int8 = {avx2_int8, 12 * 32 * 2};
  if (isa >= Isa::avx512) found.int8 = {avx512_int8, 16 * 64 * 2};
  if (isa >= Isa::avx512vnni) found.int8 = {vnni_int8, 16 * 64 * 2};
  if (isa >= Isa::avx512bf16) found.bf16 = {avx512_bf16, 16 * 32 * 2};
  if (isa >= Isa::amx) {  // four tiles of 16 × 16 sums over 64 bytes
    found.bf16 = {amx_bf16, 4.0 * 16 * 16 * 32 * 2};
    found.int8 = {amx_int8, 4.0 * 16 * 16 * 64 * 2};
  }
#else
  static_cast<void>(isa);
#endif
  return found;
}

}  // namespace modicum::cpu
