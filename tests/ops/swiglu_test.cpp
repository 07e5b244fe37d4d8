// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstring>
#include <vector>

#include <modicum/base/error.hpp>
#include <modicum/ops/matmul.hpp>

#include "ops/random_matrix.hpp"
#include "support/catch.hpp"

using namespace modicum;

namespace {

constexpr DType kDTypes[] = {DType::f32, DType::bf16, DType::f16};

struct Layer {
  Layer(DType dtype, std::size_t cols, std::size_t inner, bool biased)
      : gate(dtype, inner, cols, 1),
        up(dtype, inner, cols, 2),
        down(dtype, cols, inner, 3),
        gate_bias(random_values(inner, 4)),
        up_bias(random_values(inner, 5)),
        down_bias(random_values(cols, 6)) {
    weights = {.gate = gate.view(), .up = up.view(), .down = down.view()};
    if (biased) {
      weights.gate_bias = gate_bias.data();
      weights.up_bias = up_bias.data();
      weights.down_bias = down_bias.data();
    }
  }
  RandomWeight gate, up, down;
  std::vector<float> gate_bias, up_bias, down_bias;
  ops::SwigluWeights weights;
};

double as(DType dtype, double x) {
  return dtype == DType::bf16 ? to_f32(to_bf16(static_cast<float>(x))) : x;
}

/// The formula in f64 for one token: the result, and Σ |h · down| to judge an error by.
void reference(const Layer& layer, const float* x, std::vector<double>& y, std::vector<double>& magnitude) {
  const auto& w = layer.weights;
  const DType dtype = w.gate.dtype;
  std::vector<double> h(w.gate.rows);
  for (std::size_t o = 0; o < h.size(); ++o) {
    double a = w.gate_bias != nullptr ? w.gate_bias[o] : 0;
    double b = w.up_bias != nullptr ? w.up_bias[o] : 0;
    for (std::size_t k = 0; k < w.gate.cols; ++k) {
      a += as(dtype, x[k]) * layer.gate.at(o, k);
      b += as(dtype, x[k]) * layer.up.at(o, k);
    }
    h[o] = as(dtype, a / (1 + std::exp(-a)) * b);
  }
  for (std::size_t c = 0; c < w.gate.cols; ++c) {
    y[c] = w.down_bias != nullptr ? w.down_bias[c] : 0;
    magnitude[c] = std::fabs(y[c]) + 1;
    for (std::size_t o = 0; o < h.size(); ++o) {
      y[c] += h[o] * layer.down.at(c, o);
      magnitude[c] += std::fabs(h[o] * layer.down.at(c, o));
    }
  }
}

std::vector<float> run(ThreadPool& pool, const Layer& layer, const float* x, std::size_t tokens,
                       const std::vector<float>& before) {
  std::vector<float> y = before;
  ops::MatmulScratch scratch;
  ops::swiglu(pool, x, tokens, layer.weights, y.data(), scratch);
  return y;
}

}  // namespace

TEST_CASE(
    "a gated feed-forward layer adds what its formula says, the same in any batch and for any threads") {
  constexpr std::size_t tokens = 70;
  ThreadPool one(1), three(3);
  for (const DType dtype : kDTypes) {
    for (const auto& [cols, inner] :
         {std::pair<std::size_t, std::size_t>{1, 1}, {7, 33}, {32, 15}, {33, 16}, {64, 100}, {65, 300}}) {
      const Layer layer(dtype, cols, inner, inner % 2 == 1);
      const auto x = random_values(tokens * cols, 7);
      const auto before = random_values(tokens * cols, 8);
      std::vector<double> want(cols), magnitude(cols);
      for_each_isa([&](ops::Isa isa) {
        INFO(ops::name_of(isa) << " " << name_of(dtype) << " " << cols << " x " << inner);
        const auto y = run(one, layer, x.data(), tokens, before);
        REQUIRE(y == run(three, layer, x.data(), tokens, before));
        // With bf16, a sum at the middle of two may round to the other one: half a unit in the last place of
        // each term.
        const double bound = dtype == DType::bf16 ? 0x1p-8 : static_cast<double>(cols + inner + 20) * 0x1p-23;
        for (std::size_t t = 0; t < tokens; ++t) {
          reference(layer, &x[t * cols], want, magnitude);
          for (std::size_t c = 0; c < cols; ++c) {
            const double added =
                static_cast<double>(y[t * cols + c]) - static_cast<double>(before[t * cols + c]);
            REQUIRE(std::fabs(added - want[c]) <= bound * magnitude[c]);
          }
        }
        for (const std::size_t n : {1, 15, 16, 17, 33}) {
          const std::size_t first = tokens - n;
          const auto few =
              run(one, layer, x.data() + first * cols, n, {before.begin() + first * cols, before.end()});
          REQUIRE(std::memcmp(few.data(), y.data() + first * cols, few.size() * sizeof(float)) == 0);
        }
      });
    }
  }
}

TEST_CASE("a gate of extreme inputs saturates instead of overflowing") {
  ThreadPool pool(1);
  for (const DType dtype : kDTypes) {
    const Layer layer(dtype, 2, 40, false);
    for_each_isa([&](ops::Isa isa) {
      INFO(ops::name_of(isa) << " " << name_of(dtype));
      const float x[] = {1000.0f, -1000.0f};
      std::vector<double> want(2), magnitude(2);
      reference(layer, x, want, magnitude);
      const auto y = run(pool, layer, x, 1, {0, 0});
      for (std::size_t c = 0; c < 2; ++c) REQUIRE(std::fabs(y[c] - want[c]) <= 0x1p-8 * magnitude[c]);
    });
  }
}

TEST_CASE("a feed-forward layer whose matrices do not fit together is refused") {
  ThreadPool pool(1);
  Layer layer(DType::f32, 4, 6, false);
  layer.weights.down = layer.weights.up;
  ops::MatmulScratch scratch;
  const float x[4] = {};
  float y[4] = {};
  REQUIRE_THROWS_AS(ops::swiglu(pool, x, 1, layer.weights, y, scratch), InvalidArgument);
}
