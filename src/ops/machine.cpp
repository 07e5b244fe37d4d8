// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <vector>

#include <sys/mman.h>

#include <modicum/ops/isa.hpp>
#include <modicum/ops/machine.hpp>

#include "../cpu/peak.hpp"

namespace modicum::ops {
namespace {

constexpr int kPasses = 5;
constexpr std::size_t kHugePage = std::size_t{2} << 20;

/// Units/s of the fastest pass, where each thread's task does `units`.
double best_rate(ThreadPool& pool, double units, const std::function<void(std::size_t)>& task) {
  double best = 0;
  for (int pass = 0; pass < kPasses; ++pass) {
    const auto begin = std::chrono::steady_clock::now();
    pool.run(pool.size(), task);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    best = std::max(best, units * static_cast<double>(pool.size()) / seconds.count());
  }
  return best;
}

double peak(ThreadPool& pool, const cpu::Chain& chain) {
  // A pass of some ten milliseconds hides the fork and the join, and is short beside a time slice.
  constexpr double kOperations = 2e9;
  const int steps = std::max(1, static_cast<int>(kOperations / chain.operations));
  const double operations = steps * chain.operations;
  return best_rate(pool, operations, [&](std::size_t) { chain.run(steps); });
}

using Words = std::unique_ptr<std::uint64_t[], void (*)(std::uint64_t*)>;

/// `size` bytes, a multiple of kHugePage, all of them written.
Words touched_memory(std::size_t size) {
  const auto align = std::align_val_t{kHugePage};
  Words memory(static_cast<std::uint64_t*>(::operator new(size, align)),
               [](std::uint64_t* p) { ::operator delete(p, std::align_val_t{kHugePage}); });
  madvise(memory.get(), size, MADV_HUGEPAGE);  // where it is refused, small pages serve
  std::memset(memory.get(), 1, size);
  return memory;
}

/// Four independent sums: one alone would wait for its own additions where the data comes from a cache.
std::uint64_t sum_of(const std::uint64_t* words, std::size_t count) {
  typedef std::uint64_t W __attribute__((vector_size(16), aligned(16), may_alias));
  W sums[4] = {};
  const auto* vectors = reinterpret_cast<const W*>(words);
  for (std::size_t i = 0; i + 4 <= count / 2; i += 4) {
    for (std::size_t k = 0; k < 4; ++k) sums[k] += vectors[i + k];
  }
  const W all = sums[0] + sums[1] + sums[2] + sums[3];
  return all[0] + all[1];
}

}  // namespace

double read_bandwidth(ThreadPool& pool, std::size_t size) {
  const std::size_t unit = kHugePage * pool.size();
  size = std::max<std::size_t>(1, (size + unit / 2) / unit) * unit;
  const Words memory = touched_memory(size);
  const std::size_t share = size / pool.size();
  std::vector<std::uint64_t> sums(pool.size());
  return best_rate(pool, static_cast<double>(share), [&](std::size_t i) {
    constexpr std::size_t word = sizeof(std::uint64_t);
    sums[i] = sum_of(memory.get() + i * share / word, share / word);
  });
}

MachineLimits machine_limits(ThreadPool& pool) {
  const cpu::Chains chains = cpu::chains(active_isa());
  return {.read = read_bandwidth(pool),
          .f32 = peak(pool, chains.f32),
          .bf16 = peak(pool, chains.bf16),
          .int8 = peak(pool, chains.int8)};
}

}  // namespace modicum::ops
