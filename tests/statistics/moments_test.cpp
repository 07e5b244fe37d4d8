// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <random>
#include <span>
#include <vector>

#include <modicum/base/error.hpp>
#include <modicum/statistics/moments.hpp>

#include "support/catch.hpp"

using namespace modicum;
using Eigen::Index;

namespace {

std::vector<float> normal_rows(std::size_t rows, std::size_t width, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(rows * width);
  for (float& value : values) value = normal(random);
  return values;
}

/// Rows as the statistics keep their inputs.
std::vector<float> rounded(std::vector<float> values, DType dtype) {
  if (dtype != DType::bf16) return values;
  for (float& value : values) value = to_f32(from_f32<bf16>(value));
  return values;
}

Moments naive(std::span<const float> x, std::span<const float> t, std::size_t rows, std::size_t n,
              std::size_t m, std::span<const float> factors = {}) {
  using Rows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const auto as_matrix = [&](std::span<const float> values, std::size_t width) {
    linalg::Matrix out =
        Eigen::Map<const Rows>(values.data(), static_cast<Index>(rows), static_cast<Index>(width))
            .cast<double>();
    for (std::size_t r = 0; r < factors.size(); ++r) out.row(static_cast<Index>(r)) *= factors[r];
    return out;
  };
  const linalg::Matrix a = as_matrix(x, n), b = as_matrix(t, m);
  return {a.transpose() * a, b.transpose() * a, b.colwise().squaredNorm().transpose()};
}

double relative(const linalg::Matrix& actual, const linalg::Matrix& expected) {
  return (actual - expected).norm() / expected.norm();
}

}  // namespace

TEST_CASE("Second moments are those of a naive sum in f64") {
  ThreadPool pool(2);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const auto& [rows, n, m] :
         {std::array<std::size_t, 3>{1, 3, 2}, {64, 33, 7}, {65, 130, 131}, {300, 70, 5}, {4100, 20, 9}}) {
      const std::vector<float> x = normal_rows(rows, n, 1), t = normal_rows(rows, m, 2);
      SecondMoments sums(n, m, dtype, rows);
      sums.add(pool, x.data(), t.data(), rows);
      sums.finish(pool);
      const Moments expected = naive(rounded(x, dtype), t, rows, n, m);
      INFO(rows << " rows, " << n << " inputs, " << m << " targets");
      CHECK(sums.rows() == rows);
      CHECK(relative(sums.moments().gram, expected.gram) < 1e-6);
      // Targets as two bf16 keep 16 bits of them.
      CHECK(relative(sums.moments().cross, expected.cross) < (dtype == DType::bf16 ? 2e-5 : 2e-6));
      CHECK(relative(sums.moments().energy, expected.energy) < 1e-12);
      CHECK(sums.moments().gram == sums.moments().gram.transpose());
    }
  }
}

TEST_CASE("Rows may come in any parts, blocks that are not full among them") {
  ThreadPool pool(1);
  const std::size_t rows = 500, n = 40, m = 6;
  const std::vector<float> x = normal_rows(rows, n, 3), t = normal_rows(rows, m, 4);
  const Moments expected = naive(x, t, rows, n, m);
  for (const std::size_t part : {1u, 63u, 64u, 200u, 499u}) {
    SecondMoments sums(n, m, DType::f32, 128);  // more rows come than were expected
    for (std::size_t done = 0; done < rows; done += part) {
      sums.add(pool, x.data() + done * n, t.data() + done * m, std::min(part, rows - done));
    }
    sums.finish(pool);
    CHECK(sums.rows() == rows);
    CHECK(relative(sums.moments().gram, expected.gram) < 1e-6);
    CHECK(relative(sums.moments().cross, expected.cross) < 2e-6);
  }
}

TEST_CASE("Without targets there is a Gram matrix alone") {
  ThreadPool pool(1);
  const std::vector<float> x = normal_rows(100, 24, 5);
  SecondMoments sums(24, 0, DType::f32, 100);
  sums.add(pool, x.data(), nullptr, 100);
  sums.finish(pool);
  CHECK(relative(sums.moments().gram, naive(x, {}, 100, 24, 0).gram) < 1e-6);
  CHECK(sums.moments().cross.size() == 0);
}

TEST_CASE("A factor makes a row count by its square") {
  ThreadPool pool(1);
  const std::size_t rows = 130, n = 20, m = 3;
  const std::vector<float> x = normal_rows(rows, n, 6), t = normal_rows(rows, m, 7);
  std::vector<float> factors(rows);
  for (std::size_t r = 0; r < rows; ++r) factors[r] = std::exp2(static_cast<float>(r % 5) - 2);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    SecondMoments sums(n, m, dtype, 64);
    sums.add(pool, x.data(), t.data(), 50, std::span(factors).first(50));
    sums.add(pool, x.data() + 50 * n, t.data() + 50 * m, rows - 50, std::span(factors).subspan(50));
    sums.finish(pool);
    const Moments expected = naive(rounded(x, dtype), t, rows, n, m, factors);
    CHECK(relative(sums.moments().gram, expected.gram) < 1e-6);
    CHECK(relative(sums.moments().cross, expected.cross) < 2e-5);
    CHECK(relative(sums.moments().energy, expected.energy) < 1e-12);
  }
}

TEST_CASE("Merged parts are the whole, to rounding") {
  ThreadPool pool(1);
  const std::size_t rows = 400, n = 32, m = 4;
  const std::vector<float> x = normal_rows(rows, n, 8), t = normal_rows(rows, m, 9);
  const auto gathered = [&](std::size_t first, std::size_t count) {
    SecondMoments sums(n, m, DType::f32, count);
    sums.add(pool, x.data() + first * n, t.data() + first * m, count);
    sums.finish(pool);
    return sums;
  };
  const SecondMoments whole = gathered(0, rows);
  SecondMoments merged = gathered(0, 150);
  merged.merge(gathered(150, 250));
  CHECK(merged.rows() == rows);
  CHECK(relative(merged.moments().gram, whole.moments().gram) < 1e-6);
  CHECK(relative(merged.moments().cross, whole.moments().cross) < 1e-5);
  SecondMoments again = gathered(0, 150);
  again.merge(gathered(150, 250));
  CHECK(again.moments().gram == merged.moments().gram);
  CHECK(again.moments().cross == merged.moments().cross);
}

TEST_CASE("Parts of other shapes, or that are not finished, do not merge") {
  ThreadPool pool(1);
  const std::vector<float> x = normal_rows(10, 8, 10);
  SecondMoments sums(8, 0, DType::f32, 64), other(9, 0, DType::f32, 64), unfinished(8, 0, DType::f32, 64);
  unfinished.add(pool, x.data(), nullptr, 10);
  CHECK_THROWS_AS(sums.merge(other), InvalidArgument);
  CHECK_THROWS_AS(sums.merge(unfinished), InvalidArgument);
  CHECK(sums.rows() == 0);
}

TEST_CASE("The number of threads changes no bit") {
  const std::size_t rows = 700, n = 150, m = 140;
  const std::vector<float> x = normal_rows(rows, n, 11), t = normal_rows(rows, m, 12);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    std::vector<Moments> found;
    for (const std::size_t threads : {1u, 2u, 5u}) {
      ThreadPool pool(threads);
      SecondMoments sums(n, m, dtype, 256);
      sums.add(pool, x.data(), t.data(), rows);
      sums.finish(pool);
      found.push_back(sums.moments());
    }
    for (const Moments& other : found) {
      CHECK(other.gram == found[0].gram);
      CHECK(other.cross == found[0].cross);
      CHECK(other.energy == found[0].energy);
    }
  }
}

TEST_CASE("Magnitudes of channels are their largest and mean absolute values") {
  const std::size_t rows = 37, channels = 5;
  const std::vector<float> x = normal_rows(rows, channels, 13);
  ChannelMagnitudes whole(channels), first(channels), second(channels);
  whole.add(x.data(), rows);
  first.add(x.data(), 20);
  second.add(x.data() + 20 * channels, rows - 20);
  first.merge(second);
  CHECK(whole.rows() == rows);
  CHECK(first.rows() == rows);
  for (std::size_t c = 0; c < channels; ++c) {
    float largest = 0;
    double sum = 0;
    for (std::size_t r = 0; r < rows; ++r) {
      largest = std::max(largest, std::abs(x[r * channels + c]));
      sum += std::abs(x[r * channels + c]);
    }
    CHECK(whole.largest()[c] == largest);
    CHECK(first.largest()[c] == largest);
    CHECK(std::abs(whole.mean()[c] - sum / rows) < 1e-6);
    CHECK(std::abs(first.mean()[c] - whole.mean()[c]) < 1e-6);
  }
  CHECK(ChannelMagnitudes(3).mean() == std::vector<float>(3));
  CHECK_THROWS_AS(whole.merge(ChannelMagnitudes(4)), InvalidArgument);
}

TEST_CASE("Relative factors are powers of two near one over the root mean square of a row") {
  const std::size_t rows = 40, width = 12;
  std::vector<float> reference = normal_rows(rows, width, 14);
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t c = 0; c < width; ++c) reference[r * width + c] *= std::exp(static_cast<float>(r) - 20);
  }
  std::fill_n(reference.begin(), width, 0.0f);
  const std::vector<float> factors = relative_factors(reference.data(), rows, width);
  REQUIRE(factors.size() == rows);
  CHECK(factors[0] == 1.0f);
  for (std::size_t r = 1; r < rows; ++r) {
    int exponent = 0;
    CHECK(std::frexp(factors[r], &exponent) == 0.5f);
    double sum = 0;
    for (std::size_t c = 0; c < width; ++c) sum += std::pow(double{reference[r * width + c]}, 2);
    const double scaled = std::sqrt(sum / width) * factors[r];
    CHECK(scaled > 0.707);
    CHECK(scaled < 1.415);
  }
}
