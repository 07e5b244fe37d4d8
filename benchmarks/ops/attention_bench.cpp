// SPDX-License-Identifier: Apache-2.0
// Attention of the shapes of Qwen2.5-0.5B (14 heads, 2 key heads) and SmolLM2-135M (9 and 3), head_dim 64:
// decoding one token over a trunk of bf16, int8 or int4, 16 branches of one trunk, and the last 512 tokens of
// a prompt. Decoding goes from layer to layer of a cache of kCacheBytes, as a model does, so that keys come
// from memory; the others stay in one layer. `share_read` is the bytes of distinct keys and values, with
// their scales, over the machine's read bandwidth, `share_flop` the products over its bf16 peak, both
// measured in this process.
#include <cmath>
#include <cstdint>
#include <vector>

#include <benchmark/benchmark.h>

#include <modicum/ops/attention.hpp>
#include <modicum/ops/attention_mass.hpp>

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
/// Of elements; codes stand for as many tokens. More than a second-level cache, and than a share of a
/// server's third.
constexpr std::size_t kCacheBytes = std::size_t{256} << 20;

/// Keys or values of `layers` layers [rows, width] as elements, or as codes with one scale and offset for
/// each.
struct Rows {
  Rows(std::size_t layers, std::size_t rows, std::size_t columns, int bits_of_each, std::size_t of_layer,
       Random& random)
      : layer_bytes(rows * columns * static_cast<std::size_t>(bits_of_each) / 8),
        bits(bits_of_each),
        width(columns),
        data(layers * layer_bytes),
        scales(bits == 16 ? 0 : layers * of_layer * 2) {
    if (bits == 16) {
      auto* const values = reinterpret_cast<bf16*>(data.data());
      for (std::size_t i = 0; i < data.size() / 2; ++i) values[i] = to_bf16(random.uniform());
      return;
    }
    for (std::byte& byte : data) byte = static_cast<std::byte>(random.bits() >> 24);
    for (f16& scale : scales) scale = to_f16(1.0f / static_cast<float>(1 << bits));
  }
  /// Of layer 0, with the one scale and offset.
  double at(std::size_t row, std::size_t head, std::size_t d) const {
    if (bits == 16)
      return static_cast<double>(
          to_f32(reinterpret_cast<const bf16*>(data.data())[row * width + head * kHeadDim + d]));
    const std::size_t head_bytes = kHeadDim * static_cast<std::size_t>(bits) / 8;
    const auto byte =
        std::to_integer<unsigned>(data[(row * width / kHeadDim + head) * head_bytes + d % head_bytes]);
    const unsigned code = bits == 8 ? byte : d < head_bytes ? byte & 15u : byte >> 4;
    const auto scale = static_cast<double>(to_f32(scales[0]));
    return scale * code + scale;
  }
  double bytes_of_layer(std::size_t layers) const {
    return static_cast<double>(data.size() + scales.size() * sizeof(f16)) / static_cast<double>(layers);
  }

  std::size_t layer_bytes;
  int bits;
  std::size_t width;
  std::vector<std::byte> data;
  std::vector<f16> scales;
};

/// `groups` branches of `queries` tokens each, all of which see a trunk of `keys` and their predecessors in
/// it.
struct Problem {
  Problem(Heads h, std::size_t groups, std::size_t queries, std::size_t keys, int bits,
          std::size_t layer_count)
      : heads(h),
        width(h.keys * kHeadDim),
        count(queries),
        length(keys),
        layers(layer_count),
        k(layers, keys, width, bits, (keys + ops::kKeyGroup - 1) / ops::kKeyGroup * width, random),
        v(layers, keys, width, bits, keys * h.keys, random),
        scales{.bits = bits,
               .k = k.scales.data(),
               .v = v.scales.data(),
               .k_stride = k.scales.size() / layers,
               .v_stride = v.scales.size() / layers},
        q(groups * queries * h.queries * kHeadDim),
        out(q.size()) {
    for (float& value : q) value = random.uniform();
    for (std::size_t begin = 0; begin < keys; begin += ops::kKeyTile) {
      const auto n = static_cast<std::uint32_t>(std::min(ops::kKeyTile, keys - begin));
      tiles.push_back({.begin = begin,
                       .count = n,
                       .runs = {{.k = k.data.data(),
                                 .v = v.data.data(),
                                 .layer_stride = k.layer_bytes,
                                 .origin = 0,
                                 .count = n,
                                 .first = static_cast<std::uint32_t>(begin),
                                 .scales = bits == 16 ? nullptr : &scales}}});
    }
    for (const ops::KeyTile& tile : tiles) path.push_back(&tile);
    for (std::size_t g = 0; g < groups; ++g) {
      all.push_back({.row = g * queries, .count = queries, .position = keys - queries, .tiles = path});
    }
  }

  ops::AttentionShape shape(std::size_t layer) const {
    return {.heads = heads.queries,
            .kv_heads = heads.keys,
            .head_dim = kHeadDim,
            .kv_dtype = DType::bf16,
            .layer = layer,
            .scale = kScale};
  }

  void run(std::size_t layer) {
    const ops::RotatedQueries rotated[] = {{0, q.data()}};
    ops::attention(pool(), shape(layer), rotated, all, out.data());
  }

  /// Whether the last query of the last group is its softmax in f64.
  bool is_right() {
    run(0);
    for (std::size_t h = 0; h < heads.queries; ++h) {
      const std::size_t kv = h / (heads.queries / heads.keys);
      const float* query = &q[q.size() - (heads.queries - h) * kHeadDim];
      std::vector<double> o(kHeadDim);
      double sum = 0;
      for (std::size_t j = 0; j < length; ++j) {
        double score = 0;
        for (std::size_t d = 0; d < kHeadDim; ++d) score += static_cast<double>(query[d]) * k.at(j, kv, d);
        const double weight = std::exp(score * static_cast<double>(kScale));
        sum += weight;
        for (std::size_t d = 0; d < kHeadDim; ++d) o[d] += weight * v.at(j, kv, d);
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
  double bytes() const { return k.bytes_of_layer(layers) + v.bytes_of_layer(layers); }

  Random random;
  Heads heads;
  std::size_t width, count, length, layers;
  Rows k, v;
  ops::KvScales scales;
  std::vector<float> q, out;
  std::vector<ops::KeyTile> tiles;
  std::vector<const ops::KeyTile*> path;
  std::vector<ops::QueryGroup> all;
};

void report(benchmark::State& state, const Problem& problem) {
  using benchmark::Counter;
  const ops::MachineLimits& limits = machine();
  const auto runs = static_cast<double>(state.iterations());
  state.counters["bytes/s"] = Counter(runs * problem.bytes(), Counter::kIsRate);
  state.counters["flop/s"] = Counter(runs * problem.flop(), Counter::kIsRate);
  state.counters["share_read"] = Counter(runs * problem.bytes() / limits.read, Counter::kIsRate);
  state.counters["share_flop"] = Counter(runs * problem.flop() / limits.bf16, Counter::kIsRate);
}

void attention(benchmark::State& state, Heads heads, std::size_t groups, std::size_t queries) {
  Problem problem(heads, groups, queries, static_cast<std::size_t>(state.range(0)), 16, 1);
  machine();
  if (!problem.is_right()) return state.SkipWithError("wrong result");
  for (auto _ : state) problem.run(0);
  report(state, problem);
}

Problem cached(benchmark::State& state, Heads heads) {
  const auto keys = static_cast<std::size_t>(state.range(0));
  const std::size_t layers = kCacheBytes / (keys * heads.keys * kHeadDim * 2 * sizeof(bf16));
  return {heads, 1, 1, keys, static_cast<int>(state.range(1)), layers};
}

/// One token over trunks of so many keys of so many bits.
void decode(benchmark::State& state, Heads heads) {
  Problem problem = cached(state, heads);
  machine();
  if (!problem.is_right()) return state.SkipWithError("wrong result");
  std::size_t layer = 0;
  for (auto _ : state) problem.run(layer++ % problem.layers);
  report(state, problem);
}

void mass(benchmark::State& state, Heads heads) {
  Problem problem = cached(state, heads);
  machine();
  std::vector<float> positions(problem.length);
  const ops::RotatedQueries rotated[] = {{0, problem.q.data()}};
  std::size_t layer = 0;
  for (auto _ : state) {
    ops::attention_mass(pool(), problem.shape(layer++ % problem.layers), rotated, problem.all,
                        positions.data());
  }
  report(state, problem);
}

void trunks(benchmark::internal::Benchmark* each) {
  each->ArgNames({"keys", "bits"})->ArgsProduct({{2048, 8192, 32768}, {16, 8, 4}})->UseRealTime();
}

BENCHMARK_CAPTURE(decode, qwen, kQwen)->Apply(trunks);
BENCHMARK_CAPTURE(decode, smollm, kSmolLm)->Apply(trunks);
BENCHMARK_CAPTURE(mass, qwen, kQwen)
    ->ArgNames({"keys", "bits"})
    ->ArgsProduct({{32768}, {16, 8}})
    ->UseRealTime();
BENCHMARK_CAPTURE(attention, qwen_branches_16, kQwen, 16, 1)->Arg(512)->Arg(2048)->Arg(16384)->UseRealTime();
BENCHMARK_CAPTURE(attention, qwen_prefill_512, kQwen, 1, 512)->Arg(512)->Arg(2048)->UseRealTime();
BENCHMARK_CAPTURE(attention, smollm_branches_16, kSmolLm, 16, 1)
    ->Arg(512)
    ->Arg(2048)
    ->Arg(16384)
    ->UseRealTime();
BENCHMARK_CAPTURE(attention, smollm_prefill_512, kSmolLm, 1, 512)->Arg(512)->Arg(2048)->UseRealTime();

}  // namespace

BENCHMARK_MAIN();
