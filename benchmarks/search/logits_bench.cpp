// SPDX-License-Identifier: Apache-2.0
// What becomes of a step's logits: log-softmax, and the best continuations of all beams. Vocabularies of
// SmolLM2 (49152) and Qwen2.5 (151936); bytes/s counts each logit once.
#include <cstdint>
#include <vector>

#include <benchmark/benchmark.h>

#include <modicum/decode/log_softmax.hpp>
#include <modicum/search/scores.hpp>

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

/// The best 2 · beams over all beams, as beam search asks for them.
void best_continuations(benchmark::State& state) {
  const auto vocabulary = static_cast<std::size_t>(state.range(0));
  const auto beams = static_cast<std::size_t>(state.range(1));
  const auto logits = random_logits(vocabulary * beams);
  for (auto _ : state) {
    modicum::BestContinuations best(2 * beams);
    for (std::size_t b = 0; b < beams; ++b) {
      best.add(b, 0.0f, std::span(logits).subspan(b * vocabulary, vocabulary));
    }
    benchmark::DoNotOptimize(best.take());
  }
  count_bytes(state, logits.size());
}

BENCHMARK(log_softmax)->Arg(49152)->Arg(151936);
BENCHMARK(best_continuations)->ArgsProduct({{49152, 151936}, {1, 4, 16}});

}  // namespace

BENCHMARK_MAIN();
