// SPDX-License-Identifier: Apache-2.0
// Products of the shapes of Qwen2.5-0.5B, for one token (bounded by reading the weights) to 512 (bounded by
// multiply-adds). `share` is the speed over the machine's limit of that kind, measured in this process;
// weights of many layers pass, so that none is found in a cache.
#include <cmath>
#include <cstdint>
#include <vector>

#include <benchmark/benchmark.h>

#include <modicum/ops/machine.hpp>
#include <modicum/ops/matmul.hpp>
#include <modicum/tensor/dtype.hpp>

using namespace modicum;

namespace {

constexpr std::size_t kWeightBytes = std::size_t{256} << 20;

ThreadPool& pool() {
  static ThreadPool all;
  return all;
}

const ops::MachineLimits& machine() {
  static const ops::MachineLimits limits = ops::machine_limits(pool());
  return limits;
}

struct Problem {
  Problem(DType d, std::size_t t, std::size_t c, std::size_t o)
      : dtype(d),
        tokens(t),
        cols(c),
        outputs(o),
        x(t * c),
        y(t * o),
        copies(std::max<std::size_t>(1, kWeightBytes / (o * c * size_of(d)))),
        weights(copies * o * c * size_of(d)) {
    std::uint32_t state = 1;
    const auto next = [&] {
      state = state * 1664525u + 1013904223u;
      return static_cast<float>(state >> 8) * 0x1p-23f - 1.0f;
    };
    for (float& value : x) value = next();
    dispatch(d, [&](auto e) {
      auto* w = reinterpret_cast<decltype(e)*>(weights.data());
      for (std::size_t i = 0; i < copies * o * c; ++i) w[i] = from_f32<decltype(e)>(next());
    });
  }

  WeightView weight(std::size_t copy) const {
    return {weights.data() + copy * outputs * cols * size_of(dtype), dtype, outputs, cols};
  }

  void run(std::size_t copy) {
    const ops::Product product[] = {{weight(copy), nullptr, y.data(), outputs, false}};
    ops::matmul(pool(), x.data(), tokens, cols, product, scratch);
  }

  /// Whether some results are their sums in f64, within f32's rounding.
  bool is_right() {
    run(0);
    return dispatch(dtype, [&](auto e) {
      const auto* w = static_cast<const decltype(e)*>(weight(0).data);
      for (std::size_t i = 0; i < tokens * outputs; i += 97) {
        const std::size_t t = i / outputs, o = i % outputs;
        double sum = 0, magnitude = 0;
        for (std::size_t k = 0; k < cols; ++k) {
          const float input = dtype == DType::bf16 ? to_f32(to_bf16(x[t * cols + k])) : x[t * cols + k];
          const double term = static_cast<double>(input) * static_cast<double>(to_f32(w[o * cols + k]));
          sum += term;
          magnitude += std::fabs(term);
        }
        if (!(std::fabs(y[i] - sum) <= static_cast<double>(cols) * 0x1p-24 * magnitude)) return false;
      }
      return true;
    });
  }

  DType dtype;
  std::size_t tokens, cols, outputs;
  std::vector<float> x, y;
  std::size_t copies;
  std::vector<std::byte> weights;
  ops::MatmulScratch scratch;
};

void matmul(benchmark::State& state, DType dtype, std::size_t cols, std::size_t outputs) {
  Problem problem(dtype, static_cast<std::size_t>(state.range(0)), cols, outputs);
  const ops::MachineLimits& limits = machine();
  if (!problem.is_right()) {
    state.SkipWithError("wrong result");
    return;
  }
  std::size_t copy = 0;
  for (auto _ : state) {
    problem.run(copy);
    copy = (copy + 1) % problem.copies;
  }
  using benchmark::Counter;
  const auto runs = static_cast<double>(state.iterations());
  const double bytes = runs * static_cast<double>(problem.weight(0).bytes());
  const double flop = runs * 2.0 * static_cast<double>(problem.tokens * cols * outputs);
  const double peak = dtype == DType::bf16 ? limits.bf16 : limits.f32;
  state.counters["bytes/s"] = Counter(bytes, Counter::kIsRate, Counter::kIs1024);
  state.counters["flop/s"] = Counter(flop, Counter::kIsRate);
  state.counters["share_read"] = Counter(bytes / limits.read, Counter::kIsRate);
  state.counters["share_flop"] = Counter(flop / peak, Counter::kIsRate);
}

#define MODICUM_SHAPES(dtype)                                         \
  BENCHMARK_CAPTURE(matmul, dtype##_qkv, DType::dtype, 896, 1152)     \
      ->Arg(1)                                                        \
      ->Arg(8)                                                        \
      ->Arg(64)                                                       \
      ->Arg(512)                                                      \
      ->UseRealTime();                                                \
  BENCHMARK_CAPTURE(matmul, dtype##_gate_up, DType::dtype, 896, 9728) \
      ->Arg(1)                                                        \
      ->Arg(8)                                                        \
      ->Arg(64)                                                       \
      ->Arg(512)                                                      \
      ->UseRealTime();                                                \
  BENCHMARK_CAPTURE(matmul, dtype##_down, DType::dtype, 4864, 896)    \
      ->Arg(1)                                                        \
      ->Arg(8)                                                        \
      ->Arg(64)                                                       \
      ->Arg(512)                                                      \
      ->UseRealTime()

MODICUM_SHAPES(bf16);
MODICUM_SHAPES(f16);
MODICUM_SHAPES(f32);

#undef MODICUM_SHAPES

}  // namespace

BENCHMARK_MAIN();
