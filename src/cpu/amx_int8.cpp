// SPDX-License-Identifier: Apache-2.0
// Integer products in tiles (AMX, TDPBUSD and TDPBSSD): C[16 outputs, 16 tokens] = A[16 outputs, 32 inputs] ·
// B[32 inputs, 16 tokens], one group of inputs at a time, whose sums are then scaled and added by AVX-512.
//
// A group's product takes the tile unit 16 cycles, its 48 conversions and multiply-adds take two vector ports
// 24, so the scales bound it: about 8192 products in 24 cycles.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>

#include <immintrin.h>

#include "kernels.hpp"
#include "target.hpp"

MODICUM_TARGET_BEGIN_512("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c,amx-tile,amx-int8")
namespace modicum::cpu::amx {
namespace {

#include "avx512.inc"
#include "tiles.inc"
// Builds on those above.
#include "integer_tiles.inc"

/// Tiles 0 to 3: sums; 4 and 5: 16 rows of 32 weights; 6 and 7: 32 inputs of 16 tokens, by fours.
struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};

  std::uint16_t bytes_per_row[16] = {64, 64, 64, 64, 32, 32, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 8, 8};
};
constexpr TileConfig kTileConfig;

// Tile registers are named by literals, hence a macro.
#define MODICUM_GROUP_PRODUCT(C, A, B)    \
  do {                                    \
    _tile_loadd(A, rows, stride);         \
    _tile_loadd(B, x.x, 64);              \
    if constexpr (dtype == DType::int8) { \
      _tile_zero(C);                      \
      _tile_dpbssd(C, A, B);              \
    } else {                              \
      _tile_loadd(C, x.correction, 0);    \
      _tile_dpbusd(C, A, B);              \
    }                                     \
    _tile_stored(C, sums[C], 64);         \
  } while (false)

/// Integer sums wait in memory until those of kInFlight − 1 further groups are on their way: a load of what a
/// tile store has just written would wait for the tile unit's whole latency, about 100 cycles.
struct TileKernel {
  static constexpr bool kSigned = true;  ///< what staging yields
  static constexpr int kInFlight = 4;

  template <DType dtype>
  static void multiply(const IntegerPanel& w, const TokenTile* x, std::size_t groups, const Ahead& ahead,
                       std::size_t ahead_step, float* c) {
    alignas(64) std::int32_t sums[kInFlight][kTileFloats];
    __m512 total[16];
    for (int o = 0; o < 16; ++o) total[o] = _mm512_load_ps(c + o * 16);
    // GCC's tile loads do not say that they read memory; what was staged must be there.
    asm volatile("" ::: "memory");
    const auto step = [&]<int C>(std::integral_constant<int, C>, std::size_t g) {
      if (g * ahead_step % 64 == 0) ahead.fetch(g * ahead_step);
      add_scaled(sums[C], w.scales + g * 16, x[g], total);
      if (g + kInFlight < groups) start<dtype, C>(w, x[g + kInFlight], g + kInFlight, sums);
    };
    const auto four = [&](std::size_t g, const auto& body) {
      body(std::integral_constant<int, 0>(), g);
      if (g + 1 < groups) body(std::integral_constant<int, 1>(), g + 1);
      if (g + 2 < groups) body(std::integral_constant<int, 2>(), g + 2);
      if (g + 3 < groups) body(std::integral_constant<int, 3>(), g + 3);
    };
    four(0, [&]<int C>(std::integral_constant<int, C>, std::size_t g) { start<dtype, C>(w, x[g], g, sums); });
    for (std::size_t g = 0; g < groups; g += kInFlight) four(g, step);
    for (int o = 0; o < 16; ++o) _mm512_store_ps(c + o * 16, total[o]);
  }

  /// One group's integer sums, to memory.
  template <DType dtype, int C>
  static void start(const IntegerPanel& w, const TokenTile& x, std::size_t g,
                    std::int32_t (*sums)[kTileFloats]) {
    const std::uint8_t* const rows = w.w + g * w.step;
    const auto stride = static_cast<long>(w.stride);
    if constexpr (C == 0) MODICUM_GROUP_PRODUCT(0, 4, 6);
    if constexpr (C == 1) MODICUM_GROUP_PRODUCT(1, 5, 7);
    if constexpr (C == 2) MODICUM_GROUP_PRODUCT(2, 4, 6);
    if constexpr (C == 3) MODICUM_GROUP_PRODUCT(3, 5, 7);
    asm volatile("" ::: "memory");
  }
};
#undef MODICUM_GROUP_PRODUCT

template <class Work>
void run(const Work& work, const WeightView& w, const void* x, std::size_t tokens, void* scratch) {
  _tile_loadconfig(&kTileConfig);
  IntegerProducts<TileKernel, Work>(work, w, x, tokens, scratch).run();
  _tile_release();
}

}  // namespace

void matmul_integers(const MatmulTask& task) {
  run(Outputs{task}, task.w, task.x, task.tokens, task.scratch);
}

void gated_integers(const GatedTask& task) {
  const GatedIntegers work(task);
  run(work, task.gate, task.x, task.tokens, task.scratch);
}

}  // namespace modicum::cpu::amx
MODICUM_TARGET_END
