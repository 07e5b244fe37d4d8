// SPDX-License-Identifier: Apache-2.0
#include "machine.hpp"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <vector>

#include <modicum/ops/isa.hpp>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

using modicum::ops::Isa;

/// Iterations of a measurement: some tens of milliseconds.
constexpr int kIterations = 4'000'000;
constexpr int kPasses = 7;

/// The best of some passes, in units/s over all threads.
double best_rate(modicum::ThreadPool& pool, double units, const std::function<void(std::size_t)>& task) {
  double best = 0;
  for (int pass = 0; pass < kPasses; ++pass) {
    const auto begin = std::chrono::steady_clock::now();
    pool.run(pool.size(), task);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    best = std::max(best, units * static_cast<double>(pool.size()) / seconds.count());
  }
  return best;
}

double read_rate(modicum::ThreadPool& pool) {
  constexpr std::size_t words = std::size_t{256} / 8 << 20;
  const std::vector<std::uint64_t> memory(words, 1);
  std::vector<std::uint64_t> sums(pool.size());
  const std::size_t share = words / pool.size();
  return best_rate(pool, static_cast<double>(share * 8), [&](std::size_t i) {
    std::uint64_t sum = 0;
    for (std::size_t w = i * share; w < (i + 1) * share; ++w) sum += memory[w];
    sums[i] = sum;
  });
}

/// 16 accumulators of four lanes: what the baseline can do.
double plain_flops(modicum::ThreadPool& pool) {
  typedef float F __attribute__((vector_size(16)));
  return best_rate(pool, 16.0 * 4 * 2 * kIterations, [](std::size_t) {
    F sums[16] = {};
    F a = {1, 1, 1, 1};
    for (int i = 0; i < kIterations; ++i) {
      for (F& sum : sums) sum = sum * a + a;
      asm volatile("" : "+x"(a));
    }
    for (const F& sum : sums) asm volatile("" ::"x"(sum));
  });
}

#if defined(__x86_64__)
[[gnu::target("avx2,fma")]] void avx2_chain() {
  __m256 sums[12];
  for (auto& sum : sums) sum = _mm256_setzero_ps();
  __m256 a = _mm256_set1_ps(1.0f);
  for (int i = 0; i < kIterations; ++i) {
    for (auto& sum : sums) sum = _mm256_fmadd_ps(a, a, sum);
    asm volatile("" : "+x"(a));
  }
  for (auto& sum : sums) asm volatile("" ::"x"(sum));
}

[[gnu::target("avx512f")]] void avx512_chain() {
  __m512 sums[16];
  for (auto& sum : sums) sum = _mm512_setzero_ps();
  __m512 a = _mm512_set1_ps(1.0f);
  for (int i = 0; i < kIterations; ++i) {
    for (auto& sum : sums) sum = _mm512_fmadd_ps(a, a, sum);
    asm volatile("" : "+v"(a));
  }
  for (auto& sum : sums) asm volatile("" ::"v"(sum));
}

[[gnu::target("avx512f,avx512bf16")]] void avx512bf16_chain() {
  __m512 sums[16];
  for (auto& sum : sums) sum = _mm512_setzero_ps();
  __m512i a = _mm512_set1_epi16(0x3f80);
  for (int i = 0; i < kIterations; ++i) {
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

constexpr TileConfig kTileConfig;

[[gnu::target("amx-tile,amx-bf16")]] void amx_chain() {
  _tile_loadconfig(&kTileConfig);
  for (int i = 0; i < kIterations; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
}
#endif

bool has(Isa isa) {
  const auto& isas = modicum::ops::supported_isas();
  return std::find(isas.begin(), isas.end(), isa) != isas.end();
}

MachineLimits measure(modicum::ThreadPool& pool) {
  MachineLimits limits{.read = read_rate(pool), .flop_f32 = plain_flops(pool)};
#if defined(__x86_64__)
  constexpr double n = kIterations;
  if (has(Isa::avx2)) limits.flop_f32 = best_rate(pool, 12 * 8 * 2 * n, [](std::size_t) { avx2_chain(); });
  if (has(Isa::avx512))
    limits.flop_f32 = best_rate(pool, 16 * 16 * 2 * n, [](std::size_t) { avx512_chain(); });
  limits.flop_bf16 = limits.flop_f32;
  if (has(Isa::avx512bf16)) {
    limits.flop_bf16 = best_rate(pool, 16 * 32 * 2 * n, [](std::size_t) { avx512bf16_chain(); });
  }
  if (has(Isa::amx)) limits.flop_bf16 = best_rate(pool, 4 * 16384 * n, [](std::size_t) { amx_chain(); });
#else
  limits.flop_bf16 = limits.flop_f32;
#endif
  return limits;
}

}  // namespace

const MachineLimits& machine_limits(modicum::ThreadPool& pool) {
  static const MachineLimits limits = measure(pool);
  return limits;
}
