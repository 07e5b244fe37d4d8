// SPDX-License-Identifier: Apache-2.0
// A lexicon of a million entries: what it takes to build and to open, what a step of a search asks of it, and
// its bytes. Entries have 3 to 12 tokens of a vocabulary of 151936, drawn independently by Zipf's law: they
// share fewer beginnings than names do (6 nodes an entry, where names have 2 to 3), so this bounds from
// above.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <vector>

#include <benchmark/benchmark.h>
#include <unistd.h>

#include <modicum/search/lexicon.hpp>

#include "support.hpp"

namespace {

using modicum::Lexicon;
using modicum::TokenId;

constexpr std::size_t kEntries = 1000000;
constexpr double kVocabulary = 151936;

const std::vector<std::vector<TokenId>>& entries() {
  static const auto all = [] {
    std::vector<std::vector<TokenId>> list(kEntries);
    Random random;
    for (auto& entry : list) {
      entry.resize(3 + (random.bits() >> 16) % 10);
      // The logarithm of a rank is uniform where frequencies fall as 1 / rank.
      for (TokenId& id : entry) {
        id = static_cast<TokenId>(std::pow(kVocabulary, 0.5 + 0.5 * random.uniform())) - 1;
      }
    }
    return list;
  }();
  return all;
}

const Lexicon& lexicon() {
  static const Lexicon built = Lexicon::build(entries());
  return built;
}

struct SavedFile {
  SavedFile() : path(std::filesystem::temp_directory_path() / ("lexicon-" + std::to_string(::getpid()))) {
    lexicon().save(path);
  }
  ~SavedFile() { std::filesystem::remove(path); }
  std::filesystem::path path;
};

const Lexicon& opened() {
  static const SavedFile file;
  static const Lexicon mapped = Lexicon::open(file.path);
  return mapped;
}

void build(benchmark::State& state) {
  for (auto _ : state) benchmark::DoNotOptimize(Lexicon::build(entries()));
  const auto count = static_cast<double>(lexicon().size());
  state.counters["bytes/entry"] = static_cast<double>(lexicon().bytes()) / count;
  state.counters["nodes/entry"] = static_cast<double>(lexicon().nodes()) / count;
}

void open_file(benchmark::State& state) {
  const SavedFile file;
  for (auto _ : state) benchmark::DoNotOptimize(Lexicon::open(file.path));
}

/// `allowed` and `advance` along random entries, which is what a beam asks for each token; `items/s` counts
/// tokens.
void step(benchmark::State& state) {
  const Lexicon& mapped = opened();
  modicum::AllowedScratch scratch;
  Random random;
  std::size_t steps = 0;
  for (auto _ : state) {
    const auto& entry = entries()[random.bits() % kEntries];
    auto at = mapped.root();
    for (const TokenId id : entry) {
      benchmark::DoNotOptimize(mapped.allowed(at, scratch).tokens.data());
      at = mapped.advance(at, id);
    }
    if (!mapped.index(at)) std::abort();
    steps += entry.size();
  }
  state.SetItemsProcessed(static_cast<std::int64_t>(steps));
}

void find(benchmark::State& state) {
  const Lexicon& mapped = opened();
  Random random;
  for (auto _ : state) benchmark::DoNotOptimize(mapped.find(entries()[random.bits() % kEntries]));
}

void entry(benchmark::State& state) {
  const Lexicon& mapped = opened();
  Random random;
  for (auto _ : state) benchmark::DoNotOptimize(mapped.entry(random.bits() % mapped.size()));
}

BENCHMARK(build)->Unit(benchmark::kMillisecond);
BENCHMARK(open_file)->Unit(benchmark::kMillisecond);
BENCHMARK(step);
BENCHMARK(find);
BENCHMARK(entry);

}  // namespace

BENCHMARK_MAIN();
