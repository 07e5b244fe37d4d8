// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include <modicum/base/error.hpp>
#include <modicum/ops/matmul.hpp>

#include "ops/random_matrix.hpp"
#include "support/catch.hpp"

using namespace modicum;

namespace {

constexpr DType kDTypes[] = {DType::int8, DType::uint8, DType::uint4, DType::int8_rows};

/// The columns that share a scale where nothing else is said.
std::size_t group_of(DType dtype, std::size_t cols) {
  return dtype == DType::int8_rows ? cols : kQuantGroup;
}

/// A matrix of random integers and scales, each of which ends at the end of a page.
class IntegerWeight {
 public:
  IntegerWeight(DType dtype, std::size_t rows, std::size_t cols, std::uint32_t seed,
                DType scale_dtype = DType::bf16, std::size_t group = 0)
      : dtype_(dtype),
        rows_(rows),
        cols_(cols),
        group_(group == 0 ? group_of(dtype, cols) : group),
        data_(rows * cols * bits_of(dtype) / 8),
        scales_(scale_dtype, rows, cols / group_, seed + 1) {
    std::mt19937 random(seed);
    for (std::uint8_t& byte : data_) byte = static_cast<std::uint8_t>(random());
  }

  WeightView view() const {
    const WeightView scales = scales_.view();
    return {.data = data_.data(),
            .dtype = dtype_,
            .rows = rows_,
            .cols = cols_,
            .scales = scales.data,
            .scale_dtype = scales.dtype,
            .group = group_};
  }

  int at(std::size_t row, std::size_t col) const {
    const std::size_t i = row * cols_ + col;
    if (dtype_ == DType::uint4) return (data_.data()[i / 2] >> (i % 2 * 4) & 15) - 8;
    if (dtype_ == DType::uint8) return data_.data()[i] - 128;
    return static_cast<std::int8_t>(data_.data()[i]);
  }
  float scale(std::size_t row, std::size_t col) const { return scales_.at(row, col / group_); }

 private:
  DType dtype_;
  std::size_t rows_, cols_, group_;
  GuardedArray<std::uint8_t> data_;
  RandomWeight scales_;
};

/// That of one scale a row and one a token.
float product_of_rows(const float* x, const IntegerWeight& w, std::size_t row, std::size_t cols) {
  float most = 0;
  for (std::size_t k = 0; k < cols; ++k) most = std::max(most, std::fabs(x[k]));
  const float inverse = most > 0 ? 127.0f / most : 0.0f;
  int dot = 0;
  for (std::size_t k = 0; k < cols; ++k)
    dot += w.at(row, k) * static_cast<int>(std::nearbyint(x[k] * inverse));
  return static_cast<float>(dot) * (w.scale(row, 0) * (most / 127.0f));
}

/// The specification, step by step; the order and the roundings are part of it.
float product(const float* x, const IntegerWeight& w, std::size_t row, std::size_t cols) {
  if (w.view().dtype == DType::int8_rows) return product_of_rows(x, w, row, cols);
  float sum = 0;
  for (std::size_t g = 0; g < cols; g += kQuantGroup) {
    float most = 0;
    for (std::size_t k = g; k < g + kQuantGroup; ++k) most = std::max(most, std::fabs(x[k]));
    const float inverse = most > 0 ? 127.0f / most : 0.0f;
    int dot = 0;
    for (std::size_t k = g; k < g + kQuantGroup; ++k) {
      dot += w.at(row, k) * static_cast<int>(std::nearbyint(x[k] * inverse));
    }
    sum = std::fma(static_cast<float>(dot), w.scale(row, g) * (most / 127.0f), sum);
  }
  return sum;
}

std::vector<float> run(ThreadPool& pool, const float* x, std::size_t tokens, std::size_t cols,
                       const IntegerWeight& w, std::size_t outputs) {
  GuardedArray<float> y(tokens * outputs);
  ops::MatmulScratch scratch;
  const ops::Product products[] = {{w.view(), nullptr, y.data(), outputs, false}};
  ops::matmul(pool, x, tokens, cols, products, scratch);
  REQUIRE(y.front_is_intact());
  return {y.begin(), y.end()};
}

/// Every instruction set gives the bits of the specification; the baseline, which has no fused multiply-add,
/// gives them within its own rounding.
void require_same(ops::Isa isa, float got, float want, std::size_t cols) {
  if (isa != ops::Isa::plain) {
    REQUIRE(got == want);
  } else {
    REQUIRE(std::fabs(got - want) <= 1e-5f * static_cast<float>(cols) * 64.0f);
  }
}

void check_shape(DType dtype, std::size_t tokens, std::size_t cols, std::size_t outputs, DType scale_dtype,
                 std::size_t group) {
  const IntegerWeight w(dtype, outputs, cols, static_cast<std::uint32_t>(cols + outputs), scale_dtype, group);
  GuardedArray<float> x(tokens * cols);
  const auto values = random_values(tokens * cols, static_cast<std::uint32_t>(cols));
  std::copy(values.begin(), values.end(), x.begin());
  std::vector<float> want(tokens * outputs);
  for (std::size_t t = 0; t < tokens; ++t)
    for (std::size_t o = 0; o < outputs; ++o) want[t * outputs + o] = product(&x[t * cols], w, o, cols);
  ThreadPool pool(2);
  for_each_isa([&](ops::Isa isa) {
    INFO(ops::name_of(isa) << " " << name_of(dtype) << " cols " << cols << " outputs " << outputs);
    const std::vector<float> all = run(pool, x.data(), tokens, cols, w, outputs);
    for (std::size_t i = 0; i < all.size(); ++i) require_same(isa, all[i], want[i], cols);
    for (const std::size_t few : {1, 2, 3, 4, 5, 8, 15, 16, 17, 31, 32, 33}) {
      if (few >= tokens) break;
      INFO("tokens " << few);
      const auto part = run(pool, x.data() + (tokens - few) * cols, few, cols, w, outputs);
      const float* same = all.data() + (tokens - few) * outputs;
      REQUIRE(std::memcmp(part.data(), same, part.size() * sizeof(float)) == 0);
    }
  });
}

}  // namespace

TEST_CASE("integer products are those of the specification, bit by bit, in any batch") {
  for (const DType dtype : kDTypes) {
    for (const std::size_t cols : {32, 64, 96, 128, 160, 288, 896, 1120}) {
      for (const std::size_t outputs : {1, 3, 15, 16, 17, 32, 33, 100})
        check_shape(dtype, 35, cols, outputs, DType::bf16, 0);
    }
  }
}

TEST_CASE("scales of any float and groups of any multiple of 32 count") {
  for (const DType scale : {DType::f32, DType::f16, DType::bf16})
    check_shape(DType::int8_rows, 18, 128, 40, scale, 0);
  for (const DType dtype : {DType::int8, DType::uint8, DType::uint4}) {
    for (const DType scale : {DType::f32, DType::f16, DType::bf16}) {
      check_shape(dtype, 18, 128, 40, scale, 64);
      check_shape(dtype, 18, 256, 40, scale, 128);
      check_shape(dtype, 3, 96, 40, scale, 96);
    }
  }
}

TEST_CASE("an integer product is the same beside 600 others and for any number of threads") {
  constexpr std::size_t tokens = 601, cols = 64, outputs = 300;
  const auto x = random_values(tokens * cols, 5);
  for (const DType dtype : kDTypes) {
    const IntegerWeight w(dtype, outputs, cols, 6);
    for_each_isa([&](ops::Isa isa) {
      INFO(ops::name_of(isa) << " " << name_of(dtype));
      ThreadPool one(1), three(3);
      const auto all = run(one, x.data(), tokens, cols, w, outputs);
      REQUIRE(all == run(three, x.data(), tokens, cols, w, outputs));
      for (const std::size_t t : {0, 1, 511, 512, 600}) {
        const auto alone = run(one, x.data() + t * cols, 1, cols, w, outputs);
        REQUIRE(std::memcmp(alone.data(), all.data() + t * outputs, outputs * sizeof(float)) == 0);
      }
    });
  }
}

TEST_CASE("inputs of zero give zero, and inputs that are not finite give no number") {
  constexpr std::size_t cols = 64;
  ThreadPool pool(1);
  for (const DType dtype : kDTypes) {
    const IntegerWeight w(dtype, 20, cols, 8);
    for_each_isa([&](ops::Isa isa) {
      INFO(ops::name_of(isa) << " " << name_of(dtype));
      std::vector<float> x(cols, 0.0f);
      for (const float y : run(pool, x.data(), 1, cols, w, 20)) REQUIRE(y == 0.0f);
      for (const float bad :
           {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
        x[40] = bad;
        for (const float y : run(pool, x.data(), 1, cols, w, 20)) REQUIRE(std::isnan(y));
      }
    });
  }
}

TEST_CASE("a gated layer of integers is its products, activation and product") {
  constexpr std::size_t tokens = 37, cols = 96, inner = 160;
  const auto x = random_values(tokens * cols, 1);
  for (const DType dtype : kDTypes) {
    const IntegerWeight gate(dtype, inner, cols, 2), up(dtype, inner, cols, 3), down(dtype, cols, inner, 4);
    const RandomWeight float_down(DType::bf16, cols, inner, 5);
    for (const WeightView& last : {down.view(), float_down.view()}) {
      for_each_isa([&](ops::Isa isa) {
        INFO(ops::name_of(isa) << " " << name_of(dtype) << " then " << name_of(last.dtype));
        ThreadPool pool(2);
        ops::MatmulScratch scratch;
        std::vector<float> y(tokens * cols, 0.5f), alone(cols, 0.5f);
        const ops::SwigluWeights weights{.gate = gate.view(), .up = up.view(), .down = last};
        ops::swiglu(pool, x.data(), tokens, weights, y.data(), scratch);
        ops::swiglu(pool, x.data() + 20 * cols, 1, weights, alone.data(), scratch);
        REQUIRE(std::memcmp(alone.data(), &y[20 * cols], cols * sizeof(float)) == 0);

        std::vector<float> g(tokens * inner), u(tokens * inner), want(tokens * cols, 0.5f);
        const ops::Product both[] = {{gate.view(), nullptr, g.data(), inner},
                                     {up.view(), nullptr, u.data(), inner}};
        ops::matmul(pool, x.data(), tokens, cols, both, scratch);
        for (std::size_t i = 0; i < g.size(); ++i) g[i] = g[i] / (1.0f + std::exp(-g[i])) * u[i];
        const ops::Product then[] = {{last, nullptr, want.data(), cols, true}};
        ops::matmul(pool, g.data(), tokens, inner, then, scratch);
        float most = 0;
        for (const float value : want) most = std::max(most, std::fabs(value));
        // An activation next to a rounding boundary may fall on its other side.
        for (std::size_t i = 0; i < y.size(); ++i) REQUIRE(std::fabs(y[i] - want[i]) <= 2e-2f * most);
      });
    }
  }
}

TEST_CASE("integer weights without scales, or whose groups do not fit, are refused") {
  ThreadPool pool(1);
  ops::MatmulScratch scratch;
  const std::vector<float> x(96, 1.0f);
  float y[4] = {};
  const IntegerWeight w(DType::int8, 4, 96, 1);
  for (const int fault : {0, 1, 2, 3, 4}) {
    WeightView bad = w.view();
    if (fault == 4) bad.dtype = DType::int8_rows;
    if (fault == 0) bad.scales = nullptr;
    if (fault == 1) bad.group = 64;
    if (fault == 2) bad.group = 16;
    if (fault == 3) bad.scale_dtype = DType::int8;
    const ops::Product products[] = {{bad, nullptr, y, 4, false}};
    REQUIRE_THROWS_AS(ops::matmul(pool, x.data(), 1, 96, products, scratch), InvalidArgument);
  }
}
