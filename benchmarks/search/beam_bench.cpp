// SPDX-License-Identifier: Apache-2.0
// What a step of a search takes beside the model: a model whose logits cost nothing, so that all that is
// measured is the search. Beside it the one pass over the rows that a step cannot do without (maximum and sum
// of exponentials), and the same step within a lexicon of a million entries, whose answers are checked.
//
//   modicum_bench_beam          # "us/step", of which "us pass" is the pass over the logits
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <vector>

#include <benchmark/benchmark.h>

#include <modicum/search/beam.hpp>
#include <modicum/search/lexicon.hpp>

#include "support.hpp"

namespace {

using modicum::TokenId;

constexpr std::size_t kSteps = 64;

std::vector<float> random_rows(std::size_t rows, std::size_t vocabulary) {
  Random random;
  std::vector<float> logits(rows * vocabulary);
  for (float& value : logits) value = static_cast<float>(10.0 * random.uniform());
  return logits;
}

/// Leaves the logits of the step before where they are.
struct FreeModel {
  using State = std::size_t;
  std::size_t vocabulary;

  std::size_t vocabulary_size() const { return vocabulary; }
  std::vector<State> step(std::span<const modicum::Step<State>> steps, std::span<float> logits) {
    if (logits.data() != written || logits.size() > size) {
      const std::vector<float> fresh = random_rows(steps.size(), vocabulary);
      std::ranges::copy(fresh, logits.begin());
      written = logits.data();
      size = logits.size();
    }
    return std::vector<State>(steps.size());
  }

  const float* written = nullptr;
  std::size_t size = 0;
};

double pass_over_rows(std::size_t rows, std::size_t vocabulary) {
  const std::vector<float> logits = random_rows(rows, vocabulary);
  modicum::RowScores scores;
  constexpr int kRepeats = 20;
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < kRepeats; ++i) {
    for (std::size_t row = 0; row < rows; ++row) {
      scores.read_logits(std::span(logits).subspan(row * vocabulary, vocabulary));
      benchmark::DoNotOptimize(scores.bound(0));
    }
  }
  const std::chrono::duration<double, std::micro> taken = std::chrono::steady_clock::now() - begin;
  return taken.count() / kRepeats;
}

const modicum::Lexicon& million() {
  static const modicum::Lexicon lexicon = [] {
    std::vector<std::vector<TokenId>> entries(1000000);
    Random random;
    for (auto& entry : entries) {
      entry.resize(kSteps);
      for (std::size_t i = 0; i < 4; ++i) entry[i] = static_cast<TokenId>(random.bits() % 1000);
      for (std::size_t i = 4; i < kSteps; ++i) entry[i] = 3 + static_cast<TokenId>(i % 5);
      entry.resize(12);
    }
    return modicum::Lexicon::build(entries);
  }();
  return lexicon;
}

void run(benchmark::State& state, const modicum::Constraint* constraint, std::size_t steps) {
  const auto beams = static_cast<std::size_t>(state.range(0));
  const auto vocabulary = static_cast<std::size_t>(state.range(1));
  const std::vector<float> start = random_rows(1, vocabulary);
  const modicum::BeamOptions options{.beams = beams, .max_new_tokens = steps};
  FreeModel model{vocabulary};
  const auto begin = std::chrono::steady_clock::now();
  for (auto _ : state) {
    const auto found = modicum::beam(model, 0, start, {}, options, {.constraint = constraint});
    if (found.stats.steps != steps) std::abort();
    if (constraint && !million().find(found.hypotheses.front().ids)) std::abort();
  }
  const std::chrono::duration<double, std::micro> taken = std::chrono::steady_clock::now() - begin;
  state.counters["us/step"] = taken.count() / static_cast<double>(state.iterations() * steps);
  state.counters["us pass"] = pass_over_rows(beams, vocabulary);
}

void step(benchmark::State& state) {
  run(state, nullptr, kSteps);
}
void step_in_lexicon(benchmark::State& state) {
  run(state, &million(), 12);
}

BENCHMARK(step)->ArgsProduct({{4, 16, 32, 64}, {1024, 49152, 151936}})->Unit(benchmark::kMillisecond);
BENCHMARK(step_in_lexicon)->ArgsProduct({{4, 32}, {1024, 151936}})->Unit(benchmark::kMillisecond);

}  // namespace

BENCHMARK_MAIN();
