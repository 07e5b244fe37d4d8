// SPDX-License-Identifier: Apache-2.0
// Attention of the shapes of Qwen2.5-0.5B (14 heads, 2 key heads) and SmolLM2-135M (9 and 3), head_dim 64,
// over bf16 keys: decoding one token, 16 branches of one trunk, and the last 512 tokens of a prompt.
// `share_read` is the bytes of distinct keys and values over the machine's read bandwidth, `share_flop` the
// products over its bf16 peak, both measured in this process.
#include <cmath>
#include <cstdint>
#include <vector>

#include <benchmark/benchmark.h>

#include <modicum/ops/attention.hpp>

#include "support.hpp"

using namespace modicum;

namespace {

struct Heads {
  std::size_t queries, keys;
};
constexpr Heads kQwen{14, 2}, kSmolLm{9, 3};
constexpr std::size_t kHeadDim = 64;
constexpr float kScale = 0.125f;
/// Of values below 1: some kernels round queries and softmax weights to bf16.
constexpr double kTolerance = 5e-3;

/// `groups` branches of `queries` tokens each, all of which see a trunk of `keys` and their predecessors in
/// it.
struct Problem {
  Problem(Heads h, std::size_t groups, std::size_t queries, std::size_t keys)
      : heads(h),
        width(h.keys * kHeadDim),
        count(queries),
        length(keys),
        k(keys * width),
        v(keys * width),
        q(groups * queries * h.queries * kHeadDim),
        out(q.size()) {
    Random random;
    for (bf16& value : k) value = to_bf16(random.uniform());
    for (bf16& value : v) value = to_bf16(random.uniform());
    for (float& value : q) value = random.uniform();
    for (std::size_t begin = 0; begin < keys; begin += ops::kKeyTile) {
      const auto n = static_cast<std::uint32_t>(std::min(ops::kKeyTile, keys - begin));
      tiles.push_back({.begin = begin,
                       .count = n,
                       .runs = {{.k = reinterpret_cast<const std::byte*>(k.data()),
                                 .v = reinterpret_cast<const std::byte*>(v.data()),
                                 .layer_stride = 0,
                                 .origin = 0,
                                 .count = n,
                                 .first = static_cast<std::uint32_t>(begin)}}});
    }
    for (const ops::KeyTile& tile : tiles) path.push_back(&tile);
    for (std::size_t g = 0; g < groups; ++g) {
      all.push_back({.row = g * queries, .count = queries, .position = keys - queries, .tiles = path});
    }
  }

  void run() {
    const ops::AttentionShape shape{.heads = heads.queries,
                                    .kv_heads = heads.keys,
                                    .head_dim = kHeadDim,
                                    .kv_dtype = DType::bf16,
                                    .scale = kScale};
    const ops::RotatedQueries rotated[] = {{0, q.data()}};
    ops::attention(pool(), shape, rotated, all, out.data());
  }

  /// Whether the last query of the last group is its softmax in f64.
  bool is_right() {
    run();
    for (std::size_t h = 0; h < heads.queries; ++h) {
      const std::size_t kv = h / (heads.queries / heads.keys);
      const float* query = &q[q.size() - (heads.queries - h) * kHeadDim];
      std::vector<double> o(kHeadDim);
      double sum = 0;
      for (std::size_t j = 0; j < length; ++j) {
        double score = 0;
        for (std::size_t d = 0; d < kHeadDim; ++d) {
          score +=
              static_cast<double>(query[d]) * static_cast<double>(to_f32(k[j * width + kv * kHeadDim + d]));
        }
        const double weight = std::exp(score * static_cast<double>(kScale));
        sum += weight;
        for (std::size_t d = 0; d < kHeadDim; ++d) {
          o[d] += weight * static_cast<double>(to_f32(v[j * width + kv * kHeadDim + d]));
        }
      }
      for (std::size_t d = 0; d < kHeadDim; ++d) {
        if (!(std::fabs(out[out.size() - (heads.queries - h) * kHeadDim + d] - o[d] / sum) < kTolerance))
          return false;
      }
    }
    return true;
  }

  double flop() const {
    double seen = 0;
    for (std::size_t i = 0; i < count; ++i) seen += static_cast<double>(length - count + i + 1);
    return seen * static_cast<double>(all.size() * heads.queries * kHeadDim * 4);
  }
  double bytes() const { return static_cast<double>((k.size() + v.size()) * sizeof(bf16)); }

  Heads heads;
  std::size_t width, count, length;
  std::vector<bf16> k, v;
  std::vector<float> q, out;
  std::vector<ops::KeyTile> tiles;
  std::vector<const ops::KeyTile*> path;
  std::vector<ops::QueryGroup> all;
};

void attention(benchmark::State& state, Heads heads, std::size_t groups, std::size_t queries) {
  Problem problem(heads, groups, queries, static_cast<std::size_t>(state.range(0)));
  const ops::MachineLimits& limits = machine();
  if (!problem.is_right()) {
    state.SkipWithError("wrong result");
    return;
  }
  for (auto _ : state) problem.run();
  using benchmark::Counter;
  const auto runs = static_cast<double>(state.iterations());
  state.counters["bytes/s"] = Counter(runs * problem.bytes(), Counter::kIsRate, Counter::kIs1024);
  state.counters["flop/s"] = Counter(runs * problem.flop(), Counter::kIsRate);
  state.counters["share_read"] = Counter(runs * problem.bytes() / limits.read, Counter::kIsRate);
  state.counters["share_flop"] = Counter(runs * problem.flop() / limits.bf16, Counter::kIsRate);
}

BENCHMARK_CAPTURE(attention, qwen_decode, kQwen, 1, 1)->Arg(512)->Arg(2048)->Arg(16384)->UseRealTime();
BENCHMARK_CAPTURE(attention, qwen_branches_16, kQwen, 16, 1)->Arg(512)->Arg(2048)->Arg(16384)->UseRealTime();
BENCHMARK_CAPTURE(attention, qwen_prefill_512, kQwen, 1, 512)->Arg(512)->Arg(2048)->UseRealTime();
BENCHMARK_CAPTURE(attention, smollm_decode, kSmolLm, 1, 1)->Arg(512)->Arg(2048)->Arg(16384)->UseRealTime();
BENCHMARK_CAPTURE(attention, smollm_branches_16, kSmolLm, 16, 1)
    ->Arg(512)
    ->Arg(2048)
    ->Arg(16384)
    ->UseRealTime();
BENCHMARK_CAPTURE(attention, smollm_prefill_512, kSmolLm, 1, 512)->Arg(512)->Arg(2048)->UseRealTime();

}  // namespace

BENCHMARK_MAIN();
