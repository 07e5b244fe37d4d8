// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <vector>

#include <modicum/ops/elementwise.hpp>

#include "ops/random_matrix.hpp"
#include "support/catch.hpp"

using namespace modicum;

TEST_CASE("rms_norm is right to a few units in the last place, also in place") {
  ThreadPool pool(2);
  for (const std::size_t n : {1, 7, 8, 9, 64, 100, 896}) {
    constexpr std::size_t rows = 37;
    const auto x = random_values(rows * n, 1, 30.0f);
    const auto weight = random_values(n, 2);
    for_each_isa([&](ops::Isa isa) {
      INFO(ops::name_of(isa) << " " << n);
      GuardedArray<float> y(rows * n);
      ops::rms_norm(pool, x.data(), weight, 1e-5f, rows, y.data());
      for (std::size_t r = 0; r < rows; ++r) {
        double square = 0;
        for (std::size_t i = 0; i < n; ++i)
          square += static_cast<double>(x[r * n + i]) * static_cast<double>(x[r * n + i]);
        const double scale = 1 / std::sqrt(square / static_cast<double>(n) + static_cast<double>(1e-5f));
        for (std::size_t i = 0; i < n; ++i) {
          const double want = x[r * n + i] * scale * weight[i];
          REQUIRE(std::fabs(y[r * n + i] - want) <= 4e-7 * std::fabs(want));
        }
      }
      std::vector<float> z = x;
      ops::rms_norm(pool, z.data(), weight, 1e-5f, rows, z.data());
      REQUIRE(std::equal(z.begin(), z.end(), y.begin()));
    });
  }
}

TEST_CASE("silu_mul is right to a few units in the last place over the whole range") {
  std::vector<float> gate{0.0f,   -0.0f,   1e-30f,  -1e-30f,  88.0f, -87.0f,
                          -88.5f, -104.0f, 1000.0f, -1000.0f, 2e38f};
  for (float z = -86.0f; z < 90.0f; z += 0.0137f) gate.push_back(z);
  const std::vector<float> up(gate.size(), 1.5f);
  ThreadPool pool(2);
  for_each_isa([&](ops::Isa isa) {
    for (const std::size_t count : {gate.size(), std::size_t{1}, std::size_t{15}}) {
      GuardedArray<float> y(count);
      std::copy_n(gate.begin(), count, y.begin());
      ops::silu_mul(pool, y.data(), up.data(), count);
      for (std::size_t i = 0; i < count; ++i) {
        const double z = gate[i];
        const double want = z / (1 + std::exp(-z)) * 1.5;
        INFO(ops::name_of(isa) << " silu(" << z << ") = " << y[i] << ", " << want);
        // Below −87, where e^−z would overflow, the result is within f32's smallest numbers of 0.
        REQUIRE(std::fabs(y[i] - want) <= 5e-7 * std::fabs(want) + 1e-35);
      }
    }
  });
}

TEST_CASE("rope turns each pair of the two halves by its angle and keeps its length") {
  ThreadPool pool(2);
  constexpr std::size_t rows = 11, heads = 3, stride = 300;
  for (const std::size_t dim : {2, 8, 20, 64, 80}) {
    const auto x = random_values(rows * stride, 3);
    std::vector<float> cos(rows * dim / 2), sin(rows * dim / 2);
    for (std::size_t i = 0; i < cos.size(); ++i) {
      cos[i] = std::cos(0.37f * static_cast<float>(i));
      sin[i] = std::sin(0.37f * static_cast<float>(i));
    }
    for_each_isa([&](ops::Isa isa) {
      INFO(ops::name_of(isa) << " " << dim);
      std::vector<float> y = x;
      ops::rope(pool, y.data(), rows, heads, dim, stride, cos.data(), sin.data());
      for (std::size_t r = 0; r < rows; ++r) {
        for (std::size_t h = 0; h < heads; ++h) {
          for (std::size_t i = 0; i < dim / 2; ++i) {
            const std::size_t at = r * stride + h * dim + i;
            const double a = x[at], b = x[at + dim / 2];
            const double c = cos[r * dim / 2 + i], s = sin[r * dim / 2 + i];
            REQUIRE(std::fabs(y[at] - (a * c - b * s)) < 3e-7);
            REQUIRE(std::fabs(y[at + dim / 2] - (b * c + a * s)) < 3e-7);
          }
        }
        for (std::size_t i = heads * dim; i < stride; ++i) REQUIRE(y[r * stride + i] == x[r * stride + i]);
      }
    });
  }
}

TEST_CASE("gather_rows widens the rows that the ids name") {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    const RandomWeight table(dtype, 9, 13, 4);
    const std::vector<std::int32_t> ids{8, 0, 3, 3};
    std::vector<float> out(ids.size() * 13);
    ops::gather_rows(table.view(), ids, out.data());
    for (std::size_t r = 0; r < ids.size(); ++r) {
      for (std::size_t i = 0; i < 13; ++i)
        REQUIRE(out[r * 13 + i] == table.at(static_cast<std::size_t>(ids[r]), i));
    }
  }
}
