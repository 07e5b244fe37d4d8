// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include <modicum/base/error.hpp>
#include <modicum/ops/matmul.hpp>

#include "ops/random_matrix.hpp"
#include "support/catch.hpp"

using namespace modicum;
using ops::Product;

namespace {

constexpr std::size_t kTokens = 64;
constexpr DType kDTypes[] = {DType::f32, DType::bf16, DType::f16};

/// Sums of x · w and of |x · w| in f64, with x as the kernel gets it.
struct Reference {
  double sum = 0;
  double magnitude = 0;
};

Reference dot(const float* x, const RandomWeight& w, std::size_t row, std::size_t cols, DType dtype) {
  Reference r;
  for (std::size_t k = 0; k < cols; ++k) {
    const double input = dtype == DType::bf16 ? to_f32(to_bf16(x[k])) : x[k];
    r.sum += input * static_cast<double>(w.at(row, k));
    r.magnitude += std::fabs(input * static_cast<double>(w.at(row, k)));
  }
  return r;
}

/// The stated bound: one rounding of f32 for each addition.
double bound(const Reference& r, std::size_t cols) {
  return static_cast<double>(cols + 2) * 0x1p-24 * r.magnitude + 1e-30;
}

std::vector<float> run(ThreadPool& pool, const float* x, std::size_t tokens, std::size_t cols,
                       const RandomWeight& w, std::size_t outputs, const float* bias = nullptr) {
  GuardedArray<float> y(tokens * outputs);
  ops::MatmulScratch scratch;
  const Product product[] = {{w.view(), bias, y.data(), outputs, false}};
  ops::matmul(pool, x, tokens, cols, product, scratch);
  REQUIRE(y.front_is_intact());
  return {y.begin(), y.end()};
}

void check_shape(DType dtype, std::size_t cols, std::size_t outputs) {
  const RandomWeight w(dtype, outputs, cols, static_cast<std::uint32_t>(cols * 131 + outputs));
  GuardedArray<float> x(kTokens * cols);
  const auto values = random_values(kTokens * cols, static_cast<std::uint32_t>(cols));
  std::copy(values.begin(), values.end(), x.begin());
  std::vector<Reference> want;
  for (std::size_t t = 0; t < kTokens; ++t) {
    for (std::size_t o = 0; o < outputs; ++o) want.push_back(dot(&x[t * cols], w, o, cols, dtype));
  }
  ThreadPool pool(2);
  for_each_isa([&](ops::Isa isa) {
    INFO(ops::name_of(isa) << " " << name_of(dtype) << " cols " << cols << " outputs " << outputs);
    const std::vector<float> all = run(pool, x.data(), kTokens, cols, w, outputs);
    for (std::size_t i = 0; i < all.size(); ++i) {
      if (!(std::fabs(all[i] - want[i].sum) <= bound(want[i], cols))) {
        FAIL("element " << i << ": " << all[i] << " but " << want[i].sum << " ± " << bound(want[i], cols));
      }
    }
    // The last rows of x, so that its end is the end of the page here too.
    for (const std::size_t tokens : {1, 2, 3, 4, 5, 15, 16, 17, 31, 32, 33, 48}) {
      const float* part = x.data() + (kTokens - tokens) * cols;
      const std::vector<float> few = run(pool, part, tokens, cols, w, outputs);
      const float* same = all.data() + (kTokens - tokens) * outputs;
      INFO("tokens " << tokens);
      REQUIRE(std::memcmp(few.data(), same, few.size() * sizeof(float)) == 0);
    }
  });
}

}  // namespace

TEST_CASE(
    "products are right within f32 rounding for every shape around a vector's width, the same in any batch") {
  for (const DType dtype : kDTypes) {
    for (const std::size_t cols : {1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100}) {
      for (const std::size_t outputs : {1, 3, 15, 16, 17, 31, 32, 33, 48, 100})
        check_shape(dtype, cols, outputs);
    }
  }
}

TEST_CASE("products of a real layer's width are right, the same in any batch") {
  for (const DType dtype : kDTypes) {
    check_shape(dtype, 896, 33);
    check_shape(dtype, 1100, 64);
  }
}

TEST_CASE("a token's products are the same beside 600 others and for any number of threads") {
  constexpr std::size_t tokens = 601, cols = 70, outputs = 300;
  const auto x = random_values(tokens * cols, 5);
  for (const DType dtype : kDTypes) {
    const RandomWeight w(dtype, outputs, cols, 6);
    for_each_isa([&](ops::Isa isa) {
      INFO(ops::name_of(isa) << " " << name_of(dtype));
      ThreadPool one(1), two(2), three(3);
      const auto all = run(one, x.data(), tokens, cols, w, outputs);
      REQUIRE(all == run(two, x.data(), tokens, cols, w, outputs));
      REQUIRE(all == run(three, x.data(), tokens, cols, w, outputs));
      for (const std::size_t t : {0, 1, 15, 16, 511, 512, 575, 600}) {
        const auto alone = run(one, x.data() + t * cols, 1, cols, w, outputs);
        REQUIRE(std::memcmp(alone.data(), all.data() + t * outputs, outputs * sizeof(float)) == 0);
      }
    });
  }
}

TEST_CASE("a token's products are the same in batches of every size at which kernels change their ways") {
  constexpr std::size_t tokens = 272, cols = 620, outputs = 72;
  const auto x = random_values(tokens * cols, 5);
  for (const DType dtype : kDTypes) {
    const RandomWeight w(dtype, outputs, cols, 6);
    for_each_isa([&](ops::Isa isa) {
      INFO(ops::name_of(isa) << " " << name_of(dtype));
      ThreadPool pool(2);
      const auto all = run(pool, x.data(), tokens, cols, w, outputs);
      for (const std::size_t batch : {16, 32, 48, 65, 112, 128, 129, 256}) {
        const auto few = run(pool, x.data(), batch, cols, w, outputs);
        INFO("tokens " << batch);
        REQUIRE(std::memcmp(few.data(), all.data(), few.size() * sizeof(float)) == 0);
      }
    });
  }
}

TEST_CASE(
    "products that share their input go together, with a bias each, into strided rows, and add to what is "
    "there") {
  constexpr std::size_t tokens = 19, cols = 40, stride = 60;
  const auto x = random_values(tokens * cols, 7);
  const auto bias = random_values(50, 8);
  const auto before = random_values(tokens * stride, 9);
  ThreadPool pool(2);
  for (const DType dtype : kDTypes) {
    const RandomWeight a(dtype, 50, cols, 10), b(dtype, 17, cols, 11);
    for_each_isa([&](ops::Isa isa) {
      INFO(ops::name_of(isa) << " " << name_of(dtype));
      std::vector<float> y = before, z(tokens * 17);
      ops::MatmulScratch scratch;
      const Product products[] = {{a.view(), bias.data(), y.data(), stride, true},
                                  {b.view(), nullptr, z.data(), 17, false}};
      ops::matmul(pool, x.data(), tokens, cols, products, scratch);
      for (std::size_t t = 0; t < tokens; ++t) {
        for (std::size_t o = 0; o < stride; ++o) {
          const float was = before[t * stride + o];
          if (o >= 50) {
            REQUIRE(y[t * stride + o] == was);
            continue;
          }
          Reference r = dot(&x[t * cols], a, o, cols, dtype);
          r.sum += static_cast<double>(bias[o]) + static_cast<double>(was);
          r.magnitude += std::fabs(bias[o]) + std::fabs(was);
          REQUIRE(std::fabs(y[t * stride + o] - r.sum) <= bound(r, cols));
        }
        for (std::size_t o = 0; o < 17; ++o) {
          const Reference r = dot(&x[t * cols], b, o, cols, dtype);
          REQUIRE(std::fabs(z[t * 17 + o] - r.sum) <= bound(r, cols));
        }
      }
    });
  }
}

TEST_CASE("no tokens and no products are no work, and weights that do not fit are refused") {
  ThreadPool pool(1);
  ops::MatmulScratch scratch;
  const float x[4] = {};
  float y[4] = {1, 2, 3, 4};
  const RandomWeight w(DType::f32, 2, 4, 1), narrow(DType::f32, 2, 3, 1), half(DType::f16, 2, 4, 1);
  const Product good{w.view(), nullptr, y, 2, false};
  ops::matmul(pool, x, 0, 4, {&good, 1}, scratch);
  ops::matmul(pool, x, 1, 4, {}, scratch);
  REQUIRE(y[0] == 1);
  for (const RandomWeight* bad : {&narrow, &half}) {
    const Product products[] = {good, {bad->view(), nullptr, y, 2, false}};
    REQUIRE_THROWS_AS(ops::matmul(pool, x, 1, 4, products, scratch), InvalidArgument);
  }
}
