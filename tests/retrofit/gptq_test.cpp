// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>

#include <modicum/base/error.hpp>
#include <modicum/retrofit/gptq.hpp>
#include <modicum/retrofit/round.hpp>

#include "correlated.hpp"
#include "support/catch.hpp"

using namespace modicum;
using Catch::Matchers::Contains;
using linalg::Matrix;
using retrofit::round_gptq;
using retrofit::round_nearest;
using retrofit::RoundedMatrix;
using retrofit::RoundOptions;

namespace {

std::vector<float> difference(std::span<const float> weights, const RoundedMatrix& rounded) {
  std::vector<float> values = dequantize(rounded);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = weights[i] - values[i];
  return values;
}

}  // namespace

TEST_CASE("rounding to nearest is round_group on each group, and its report is of the outputs") {
  const std::size_t rows = 19, cols = 96;
  const std::vector<float> weights = gaussian_weights(rows * cols, 1);
  const Matrix gram = correlated_gram(cols, 2);
  ThreadPool pool(2);
  for (const std::size_t group : {32u, 96u, 0u}) {
    for (const std::size_t bits : {3u, 4u, 8u}) {
      const RoundedMatrix rounded =
          round_nearest(weights, rows, cols, {.bits = bits, .group = group}, &gram, pool);
      const std::size_t width = group == 0 ? cols : group;
      REQUIRE(rounded.scales.size() == rows * cols / width);
      std::vector<std::int8_t> integers(width);
      for (std::size_t i = 0; i < weights.size(); i += width) {
        const float scale =
            retrofit::round_group(std::span(weights).subspan(i, width), bits, DType::bf16, integers);
        REQUIRE(rounded.scales[i / width] == scale);
        REQUIRE(
            std::equal(integers.begin(), integers.end(), rounded.integers.begin() + static_cast<long>(i)));
      }
      CHECK(rounded.error == Approx(exact_energy(difference(weights, rounded), gram)).epsilon(1e-5));
      CHECK(rounded.energy == Approx(exact_energy(weights, gram)).epsilon(1e-5));
    }
  }
  const Matrix identity = Matrix::Identity(96, 96);
  const RoundedMatrix plain = round_nearest(weights, rows, cols, {.group = 32}, nullptr, pool);
  CHECK(plain.error == Approx(exact_energy(difference(weights, plain), identity)).epsilon(1e-6));
  CHECK(plain.energy == Approx(exact_energy(weights, identity)).epsilon(1e-6));
}

TEST_CASE("GPTQ loses less of the outputs than rounding to nearest where inputs are correlated") {
  const std::size_t rows = 40, cols = 384;
  const std::vector<float> weights = gaussian_weights(rows * cols, 3);
  const Matrix gram = correlated_gram(cols, 4);
  ThreadPool pool(2);
  for (const std::size_t group : {32u, 96u, 128u, 192u, 0u}) {
    for (const std::size_t bits : {3u, 4u, 8u}) {
      for (const bool act_order : {false, true}) {
        INFO("group " << group << ", bits " << bits << ", act_order " << act_order);
        const RoundOptions options{.bits = bits, .group = group, .act_order = act_order};
        const RoundedMatrix nearest = round_nearest(weights, rows, cols, options, &gram, pool);
        const RoundedMatrix rounded = round_gptq(weights, rows, cols, gram, options, pool);
        CHECK(rounded.error < 0.5 * nearest.error);
        CHECK(rounded.energy == nearest.energy);
        CHECK(rounded.error == Approx(exact_energy(difference(weights, rounded), gram)).epsilon(1e-4));
        // Where scales are found beforehand they are those of rounding to nearest.
        if (act_order || group == 0) CHECK(rounded.scales == nearest.scales);
      }
    }
  }
}

TEST_CASE("GPTQ with inputs that are not correlated is rounding to nearest") {
  const std::size_t rows = 7, cols = 160;
  const std::vector<float> weights = gaussian_weights(rows * cols, 5);
  ThreadPool pool(1);
  const Matrix gram = Eigen::VectorXd::LinSpaced(cols, 0.0, 3.0).asDiagonal();
  for (const std::size_t group : {32u, 160u, 0u}) {
    for (const double damping : {0.0, 0.01}) {
      for (const bool act_order : {false, true}) {
        const RoundOptions options{.group = group, .act_order = act_order, .damping = damping};
        const RoundedMatrix nearest = round_nearest(weights, rows, cols, options, &gram, pool);
        const RoundedMatrix rounded = round_gptq(weights, rows, cols, gram, options, pool);
        CHECK(rounded.integers == nearest.integers);
        CHECK(rounded.scales == nearest.scales);
      }
    }
  }
  const Matrix none = Matrix::Zero(cols, cols);
  const RoundedMatrix rounded = round_gptq(weights, rows, cols, none, {.group = 32}, pool);
  CHECK(rounded.integers == round_nearest(weights, rows, cols, {.group = 32}, nullptr, pool).integers);
  CHECK(rounded.error == 0);
}

TEST_CASE("a column without inputs is rounded to nearest among columns that have some") {
  const std::size_t rows = 12, cols = 64;
  const std::vector<float> weights = gaussian_weights(rows * cols, 6);
  Matrix gram = correlated_gram(cols, 7);
  for (const Eigen::Index dead : {5, 40}) {
    gram.row(dead).setZero();
    gram.col(dead).setZero();
  }
  ThreadPool pool(1);
  for (const double damping : {0.0, 0.01}) {
    const RoundOptions options{.group = 32, .act_order = true, .damping = damping};
    const RoundedMatrix rounded = round_gptq(weights, rows, cols, gram, options, pool);
    const RoundedMatrix nearest = round_nearest(weights, rows, cols, options, nullptr, pool);
    CHECK(rounded.integers != nearest.integers);
    for (std::size_t r = 0; r < rows; ++r) {
      CHECK(rounded.integers[r * cols + 5] == nearest.integers[r * cols + 5]);
      CHECK(rounded.integers[r * cols + 40] == nearest.integers[r * cols + 40]);
    }
  }
}

TEST_CASE("results are bit-identical for any number of threads") {
  const std::size_t rows = 101, cols = 416;
  const std::vector<float> weights = gaussian_weights(rows * cols, 8);
  const Matrix gram = correlated_gram(cols, 9);
  ThreadPool one(1), three(3);
  for (const bool act_order : {false, true}) {
    const RoundOptions options{.group = 32, .act_order = act_order};
    const RoundedMatrix a = round_gptq(weights, rows, cols, gram, options, one);
    const RoundedMatrix b = round_gptq(weights, rows, cols, gram, options, three);
    CHECK(a.integers == b.integers);
    CHECK(a.scales == b.scales);
    CHECK(a.error == b.error);
    CHECK(a.energy == b.energy);
  }
}

TEST_CASE("what cannot be rounded is refused by name") {
  std::vector<float> weights = gaussian_weights(4 * 64, 10);
  const Matrix gram = correlated_gram(64, 11);
  ThreadPool pool(1);
  const auto refuses = [&](std::size_t rows, std::size_t cols, const Matrix& g, const RoundOptions& options,
                           const std::string& text) {
    CHECK_THROWS_AS(round_gptq(weights, rows, cols, g, options, pool), InvalidArgument);
    CHECK_THROWS_WITH(round_gptq(weights, rows, cols, g, options, pool), Contains(text));
  };
  const RoundOptions fine{.group = 32};
  refuses(4, 64, gram, {.bits = 1, .group = 32}, "bits: expected 2 to 8, got 1");
  refuses(4, 64, gram, {.bits = 9, .group = 32}, "bits");
  refuses(4, 64, gram, {.group = 48}, "group of 48 with 64 columns");
  refuses(4, 64, gram, {.group = 128}, "group of 128");
  refuses(4, 64, gram, {.group = 32, .scale_dtype = DType::uint8}, "dtype of scales");
  refuses(4, 64, gram, {.group = 32, .damping = -1}, "damping");
  refuses(4, 64, gram, {.group = 32, .damping = NAN}, "damping");
  refuses(5, 64, gram, fine, "256 values");
  refuses(0, 64, gram, fine, "at least one row");
  refuses(4, 64, correlated_gram(32, 1), fine, "64 × 64");
  Matrix bad = gram;
  bad(3, 50) += 1;
  refuses(4, 64, bad, fine, "a symmetric matrix");
  bad(3, 50) = bad(50, 3) = std::numeric_limits<double>::quiet_NaN();
  refuses(4, 64, bad, fine, "finite");
  bad = gram;
  bad(7, 7) = -1;
  refuses(4, 64, bad, fine, "gram at [7, 7]");
  bad = Matrix::Constant(64, 64, 1.0);
  bad.diagonal().setConstant(0.5);
  refuses(4, 64, bad, fine, "positive definite");
  weights[70] = INFINITY;
  refuses(4, 64, gram, fine, "weights at [1, 6]: expected a finite weight, got infinity");
  CHECK_THROWS_WITH(round_nearest(weights, 4, 64, fine, nullptr, pool), Contains("weights at [1, 6]"));
}
