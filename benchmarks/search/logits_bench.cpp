// SPDX-License-Identifier: Apache-2.0
// What becomes of a step's logits: log-softmax. Vocabularies of SmolLM2 (49152) and Qwen2.5
// (151936); bytes/s counts each logit once.
#include <cstdint>
#include <vector>

#include <benchmark/benchmark.h>

#include <modicum/decode/log_softmax.hpp>

#include "support.hpp"

namespace {

std::vector<float> random_logits(std::size_t count) {
  std::vector<float> values(count);
  Random random;
  for (float& value : values) value = 8.0f * random.uniform();
  return values;
}

void count_bytes(benchmark::State& state, std::size_t logits) {
  using benchmark::Counter;
  const double bytes = static_cast<double>(state.iterations()) * static_cast<double>(logits * sizeof(float));
  state.counters["bytes/s"] = Counter(bytes, Counter::kIsRate, Counter::kIs1024);
}

void log_softmax(benchmark::State& state) {
  const auto logits = random_logits(static_cast<std::size_t>(state.range(0)));
  for (auto _ : state) benchmark::DoNotOptimize(modicum::log_normaliser(logits));
  count_bytes(state, logits.size());
}

BENCHMARK(log_softmax)->Arg(49152)->Arg(151936);

}  // namespace

BENCHMARK_MAIN();
