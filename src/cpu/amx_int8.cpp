// SPDX-License-Identifier: Apache-2.0
// Integer products in tiles (AMX, TDPBUSD and TDPBSSD): C[16 outputs, 16 tokens] = A[16 outputs, 32 inputs] · B[32 inputs,
// 16 tokens], one group of inputs at a time, whose sums are then scaled and added by AVX-512.
//
// A group's product takes the tile unit 16 cycles, its 48 conversions and multiply-adds take two vector ports 24, so the
// scales bound it: about 8192 products in 24 cycles. Two groups' sums are in flight, so that the one's scaling hides the
// other's product.
#include <algorithm>
#include <cmath>
#include <cstring>

#include <immintrin.h>

#include "kernels.hpp"
#include "target.hpp"

MODICUM_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c,amx-tile,amx-int8,prefer-vector-width=512")
namespace modicum::cpu::amx {
namespace {

#include "avx512.inc"
#include "tiles.inc"
#include "integer_tiles.inc"

/// Tiles 0 and 1: sums; 2 and 3: 16 rows of 32 weights; 4 and 5: 32 inputs of 16 tokens, by fours.
struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};

  std::uint16_t bytes_per_row[16] = {64, 64, 32, 32, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 8, 8};
};
constexpr TileConfig kTileConfig;

struct TileKernel {
  template <DType dtype>
  static void multiply(const IntegerPanel& w, const TokenTile* x, std::size_t groups, const Ahead& ahead,
                       std::size_t ahead_step, float* c) {
    alignas(64) std::int32_t sums[2][kTileFloats];
    __m512 total[16];
    for (int o = 0; o < 16; ++o) total[o] = _mm512_load_ps(c + o * 16);
    // GCC's tile loads do not say that they read memory; what was staged must be there.
    asm volatile("" ::: "memory");
    start<dtype, 0>(w, x[0], 0, sums[0]);
    std::size_t g = 0;
    for (; g + 2 < groups; g += 2) {
      if (g * ahead_step % 64 == 0) ahead.fetch(g * ahead_step);
      start<dtype, 1>(w, x[g + 1], g + 1, sums[1]);
      add_scaled(sums[0], w.scales + g * 16, x[g], total);
      if ((g + 1) * ahead_step % 64 == 0) ahead.fetch((g + 1) * ahead_step);
      start<dtype, 0>(w, x[g + 2], g + 2, sums[0]);
      add_scaled(sums[1], w.scales + (g + 1) * 16, x[g + 1], total);
    }
    if (g + 1 < groups) start<dtype, 1>(w, x[g + 1], g + 1, sums[1]);
    add_scaled(sums[0], w.scales + g * 16, x[g], total);
    if (g + 1 < groups) add_scaled(sums[1], w.scales + (g + 1) * 16, x[g + 1], total);
    for (int o = 0; o < 16; ++o) _mm512_store_ps(c + o * 16, total[o]);
  }

  /// One group's integer sums, to memory.
  template <DType dtype, int C>
  static void start(const IntegerPanel& w, const TokenTile& x, std::size_t g, std::int32_t* sums) {
    const std::uint8_t* const rows = w.w + g * w.step;
    const auto stride = static_cast<long>(w.stride);
    // Tile registers are named by literals.
    if constexpr (C == 0) {
      _tile_loadd(2, rows, stride);
      _tile_loadd(4, x.x, 64);
      if constexpr (dtype == DType::int8) {
        _tile_zero(0);
        _tile_dpbssd(0, 2, 4);
      } else {
        _tile_loadd(0, x.correction, 0);
        _tile_dpbusd(0, 2, 4);
      }
      _tile_stored(0, sums, 64);
    } else {
      _tile_loadd(3, rows, stride);
      _tile_loadd(5, x.x, 64);
      if constexpr (dtype == DType::int8) {
        _tile_zero(1);
        _tile_dpbssd(1, 3, 5);
      } else {
        _tile_loadd(1, x.correction, 0);
        _tile_dpbusd(1, 3, 5);
      }
      _tile_stored(1, sums, 64);
    }
    asm volatile("" ::: "memory");
  }
};

template <class Work>
void run(const Work& work, const WeightView& w, const void* x, std::size_t tokens, void* scratch) {
  _tile_loadconfig(&kTileConfig);
  IntegerProducts<TileKernel, Work>(work, w, x, tokens, scratch).run();
  _tile_release();
}

}  // namespace

void matmul_integers(const MatmulTask& task) { run(Outputs{task}, task.w, task.x, task.tokens, task.scratch); }

void gated_integers(const GatedTask& task) {
  const GatedIntegers work(task);
  run(work, task.gate, task.x, task.tokens, task.scratch);
}

}  // namespace modicum::cpu::amx
MODICUM_TARGET_END
