// SPDX-License-Identifier: Apache-2.0
// Products of the shapes of Qwen2.5-0.5B and SmolLM2-135M, for one token (bounded by reading the weights) to
// 512 (bounded by multiply-adds), weights in floats and in integers by groups of 32. `share_…` is the speed
// over the machine's limit of that kind, measured in this process; weights of many layers pass, more than a
// server's last cache holds, so that none is found in it.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include <modicum/ops/matmul.hpp>
#include <modicum/tensor/dtype.hpp>

#include "support.hpp"

using namespace modicum;

namespace {

constexpr std::size_t kWeightBytes = std::size_t{512} << 20;

struct Problem {
  Problem(DType d, std::size_t t, std::size_t c, std::size_t o)
      : dtype(d), tokens(t), cols(c), outputs(o), x(t * c), y(t * o) {
    const std::size_t size = o * c * bits_of(d) / 8;
    copies = std::max<std::size_t>(1, kWeightBytes / size);
    weights.resize(copies * size);
    for (float& value : x) value = random.uniform();
    if (is_float(d)) {
      dispatch(d, [&](auto e) {
        auto* w = reinterpret_cast<decltype(e)*>(weights.data());
        for (std::size_t i = 0; i < o * c; ++i) w[i] = from_f32<decltype(e)>(random.uniform());
      });
    } else {
      for (std::size_t i = 0; i < size; ++i) weights[i] = static_cast<std::byte>(random.bits());
      scales.resize(copies * o * c / kQuantGroup);
      for (bf16& value : scales) value = to_bf16(random.uniform() * 0x1p-6f);
    }
    for (std::size_t i = 1; i < copies; ++i) std::memcpy(weights.data() + i * size, weights.data(), size);
  }

  WeightView weight(std::size_t copy) const {
    const std::size_t elements = copy * outputs * cols;
    return {.data = weights.data() + elements * bits_of(dtype) / 8,
            .dtype = dtype,
            .rows = outputs,
            .cols = cols,
            .scales = is_float(dtype) ? nullptr : scales.data() + elements / kQuantGroup};
  }

  void run(std::size_t copy) {
    const ops::Product product[] = {{weight(copy), nullptr, y.data(), outputs, false}};
    ops::matmul(pool(), x.data(), tokens, cols, product, scratch);
  }

  double weight_at(std::size_t row, std::size_t col) const {
    const std::size_t i = row * cols + col;
    if (is_float(dtype)) {
      return dispatch(dtype, [&](auto e) {
        return static_cast<double>(to_f32(reinterpret_cast<const decltype(e)*>(weights.data())[i]));
      });
    }
    const auto byte = std::to_integer<int>(weights[i * bits_of(dtype) / 8]);
    const int integer = dtype == DType::uint4 ? (byte >> (i % 2 * 4) & 15) - 8 : byte - 128;
    return integer * static_cast<double>(to_f32(scales[i / kQuantGroup]));
  }

  /// Whether some results are their sums in f64, within the rounding of f32 and of the activations: for
  /// integer weights these become 8 bits of the largest of their group, which is at most 1.
  bool is_right() {
    run(0);
    for (std::size_t i = 0; i < tokens * outputs; i += 997) {
      const std::size_t t = i / outputs, o = i % outputs;
      double sum = 0, magnitude = 0, total = 0;
      for (std::size_t k = 0; k < cols; ++k) {
        const float input = dtype == DType::bf16 ? to_f32(to_bf16(x[t * cols + k])) : x[t * cols + k];
        const double w = weight_at(o, k);
        sum += static_cast<double>(input) * w;
        magnitude += std::fabs(static_cast<double>(input) * w);
        total += std::fabs(w);
      }
      const double rounding = static_cast<double>(cols) * 0x1p-24 * magnitude;
      if (!(std::fabs(y[i] - sum) <= rounding + (is_float(dtype) ? 0 : total / 250))) return false;
    }
    return true;
  }

  DType dtype;
  std::size_t tokens, cols, outputs;
  std::vector<float> x, y;
  std::size_t copies = 1;
  std::vector<std::byte> weights;
  std::vector<bf16> scales;
  Random random;
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
  const double peak = !is_float(dtype) ? limits.int8 : dtype == DType::bf16 ? limits.bf16 : limits.f32;
  state.counters["bytes/s"] = Counter(bytes, Counter::kIsRate, Counter::kIs1024);
  state.counters["flop/s"] = Counter(flop, Counter::kIsRate);
  state.counters["share_read"] = Counter(bytes / limits.read, Counter::kIsRate);
  state.counters["share_flop"] = Counter(flop / peak, Counter::kIsRate);
}

struct Shape {
  const char* name;
  std::size_t cols, outputs;
};

constexpr Shape kShapes[] = {
    {"qwen_qkv", 896, 1152},  {"qwen_gate_up", 896, 9728},   {"qwen_down", 4864, 896},
    {"smollm_qkv", 576, 960}, {"smollm_gate_up", 576, 3072}, {"smollm_down", 1536, 576},
};

void register_all() {
  for (const DType dtype : {DType::bf16, DType::uint8, DType::uint4, DType::f16, DType::f32}) {
    for (const Shape& shape : kShapes) {
      const std::string name = "matmul/" + std::string(name_of(dtype)) + "_" + shape.name;
      benchmark::RegisterBenchmark(name.c_str(), matmul, dtype, shape.cols, shape.outputs)
          ->Arg(1)
          ->Arg(8)
          ->Arg(16)
          ->Arg(32)
          ->Arg(64)
          ->Arg(128)
          ->Arg(512)
          ->UseRealTime();
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  register_all();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}
