// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include <modicum/ops/reductions.hpp>

#include "ops/random_matrix.hpp"
#include "support/catch.hpp"

using namespace modicum;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

}  // namespace

TEST_CASE("a sum of exponentials is right to a few units in the last place, at every size") {
  for (const std::size_t n : {0, 1, 15, 16, 17, 255, 256, 257, 1000, 49152}) {
    auto x = random_values(n, 3, 12.0f);
    for (std::size_t i = 1; i < n; i += 7) x[i] = i % 2 == 0 ? -kInfinity : -150.0f;
    for_each_isa([&](ops::Isa isa) {
      INFO(ops::name_of(isa) << " " << n);
      const float shift = n == 0 ? 0.0f : ops::largest(x);
      double want = 0;
      for (const float value : x) want += std::exp(static_cast<double>(value - shift));
      CHECK(std::fabs(ops::exp_sum(x, shift) - want) <= 1e-6 * want);
    });
  }
}

TEST_CASE("NaN makes the sum NaN") {
  for_each_isa([&](ops::Isa) {
    for (const std::size_t at : {0, 17, 299}) {
      std::vector<float> x(300, 1.0f);
      x[at] = kNan;
      CHECK(std::isnan(ops::exp_sum(x, 1.0f)));
    }
  });
}

TEST_CASE("the largest element is found wherever it is, and NaN is passed over") {
  for_each_isa([&](ops::Isa) {
    CHECK(ops::largest({}) == -kInfinity);
    for (const std::size_t n : {1, 31, 32, 33, 64, 300}) {
      auto x = random_values(n, 5);
      for (std::size_t at = 0; at < n; ++at) {
        GuardedArray<float> y(n);
        std::ranges::copy(x, y.begin());
        y[at] = 50.0f;
        if (n > 1) y[(at + 1) % n] = kNan;
        REQUIRE(ops::largest({y.data(), n}) == 50.0f);
      }
    }
    CHECK(ops::largest(std::vector<float>{kNan, -kInfinity, kNan}) == -kInfinity);
  });
}
