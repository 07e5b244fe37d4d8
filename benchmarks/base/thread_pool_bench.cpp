// SPDX-License-Identifier: Apache-2.0
// What a fork and a join cost: `run` of tasks that do nothing, one a thread and sixteen a thread, and after a
// pause in which the workers have gone to sleep.
#include <chrono>
#include <thread>

#include <benchmark/benchmark.h>

#include <modicum/base/thread_pool.hpp>

namespace {

modicum::ThreadPool& pool() {
  static modicum::ThreadPool all;
  return all;
}

void fork_join(benchmark::State& state) {
  const std::size_t tasks = pool().size() * static_cast<std::size_t>(state.range(0));
  for (auto _ : state) pool().run(tasks, [](std::size_t i) { benchmark::DoNotOptimize(i); });
}

void fork_join_after_sleep(benchmark::State& state) {
  for (auto _ : state) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    const auto begin = std::chrono::steady_clock::now();
    pool().run(pool().size(), [](std::size_t i) { benchmark::DoNotOptimize(i); });
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    state.SetIterationTime(seconds.count());
  }
}

BENCHMARK(fork_join)->Arg(1)->Arg(16)->UseRealTime();
BENCHMARK(fork_join_after_sleep)->UseManualTime();

}  // namespace

BENCHMARK_MAIN();
