// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include <modicum/base/error.hpp>
#include <modicum/retrofit/scale_fold.hpp>

#include "correlated.hpp"
#include "support/catch.hpp"

using namespace modicum;
using Catch::Matchers::Contains;
using namespace modicum::retrofit;
using linalg::Matrix;

namespace {

using Rows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

Eigen::Map<const Rows> view(const std::vector<float>& values, std::size_t rows) {
  return {values.data(), static_cast<Eigen::Index>(rows), static_cast<Eigen::Index>(values.size() / rows)};
}

std::vector<float> scales_of(std::size_t count, unsigned seed) {
  std::vector<float> scales = gaussian_weights(count, seed, 1.0f);
  for (float& s : scales) s = std::exp(s);
  return scales;
}

double relative(const Rows& actual, const Rows& expected) {
  return (actual - expected).norm() / expected.norm();
}

}  // namespace

TEST_CASE("a fold into a norm leaves what follows as it was") {
  const std::size_t hidden = 64, rows = 48;
  const std::vector<float> scales = scales_of(hidden, 1);
  std::vector<float> norm = scales_of(hidden, 2), weights = gaussian_weights(rows * hidden, 3);
  const std::vector<float> x = gaussian_weights(5 * hidden, 4, 1.0f);
  const auto outputs = [&] {
    return Rows(view(x, 5) * view(norm, 1).row(0).asDiagonal() * view(weights, rows).transpose());
  };
  const Rows before = outputs();
  const std::vector<float> norm_before = norm;
  divide_channels(norm, scales);
  scale_columns(weights, rows, scales);
  CHECK(norm != norm_before);
  CHECK(relative(outputs(), before) < 1e-6);
}

TEST_CASE("a fold of values into the output projection goes through grouped-query attention") {
  const std::size_t heads = 6, kv = 2, dim = 8, hidden = 32, tokens = 7;
  const std::vector<float> scales = scales_of(kv * dim, 1);
  const FoldSources sources = grouped_query_sources(heads, kv, dim);
  std::vector<float> v = gaussian_weights(kv * dim * hidden, 2, 1.0f), bias = gaussian_weights(kv * dim, 3);
  std::vector<float> o = gaussian_weights(hidden * heads * dim, 4, 1.0f);
  const std::vector<float> x = gaussian_weights(tokens * hidden, 5, 1.0f);
  const std::vector<float> attention = gaussian_weights(heads * tokens * tokens, 6, 1.0f);
  const auto outputs = [&] {
    const Rows values = (view(x, tokens) * view(v, kv * dim).transpose()).rowwise() + view(bias, 1).row(0);
    Rows mixed(tokens, heads * dim);
    for (std::size_t h = 0; h < heads; ++h) {
      const Eigen::Map<const Rows> p(attention.data() + h * tokens * tokens, tokens, tokens);
      mixed.middleCols(h * dim, dim) = p * values.middleCols(h / (heads / kv) * dim, dim);
    }
    return Rows(mixed * view(o, hidden).transpose());
  };
  const Rows before = outputs();
  divide_rows(v, scales);
  divide_channels(bias, scales);
  CHECK(relative(outputs(), before) > 0.1);
  scale_columns(o, hidden, scales, sources);
  CHECK(relative(outputs(), before) < 1e-5);
}

TEST_CASE("a fold of up into down goes through the gate") {
  const std::size_t inner = 96, hidden = 32;
  const std::vector<float> scales = scales_of(inner, 1);
  const std::vector<float> gate = gaussian_weights(inner * hidden, 2, 1.0f);
  std::vector<float> up = gaussian_weights(inner * hidden, 3, 1.0f),
                     down = gaussian_weights(hidden * inner, 4, 1.0f);
  const std::vector<float> x = gaussian_weights(5 * hidden, 5, 1.0f);
  const auto outputs = [&] {
    const Rows g = view(x, 5) * view(gate, inner).transpose();
    const Rows silu = g.array() / (1 + (-g.array()).exp());
    return Rows(silu.cwiseProduct(view(x, 5) * view(up, inner).transpose()) * view(down, hidden).transpose());
  };
  const Rows before = outputs();
  divide_rows(up, scales);
  scale_columns(down, hidden, scales);
  CHECK(relative(outputs(), before) < 1e-5);
}

TEST_CASE("AWQ's scales lose less of the outputs than none, for all matrices of an input together") {
  const std::size_t cols = 128;
  const std::vector<float> a = gaussian_weights(24 * cols, 1), b = gaussian_weights(40 * cols, 2);
  const Matrix gram = correlated_gram(cols, 3);
  const std::vector<LinearView> matrices = {{a, 24}, {b, 40}};
  ThreadPool one(1), three(3);
  for (const std::size_t group : {32u, 128u, 0u}) {
    const RoundOptions options{.bits = 4, .group = group};
    const AwqScales found = awq_scales(matrices, gram, {}, options, one);
    CHECK(found.alpha > 0);
    CHECK(found.error < 0.9 * found.unscaled_error);
    const AwqScales again = awq_scales(matrices, gram, {}, options, three);
    CHECK(again.scales == found.scales);
    CHECK(again.error == found.error);

    double unscaled = 0, scaled = 0;
    Matrix divided = gram;
    divide_gram(divided, found.scales);
    for (const LinearView& matrix : matrices) {
      unscaled += round_nearest(matrix.values, matrix.rows, cols, options, &gram, one).error;
      std::vector<float> folded(matrix.values.begin(), matrix.values.end());
      scale_columns(folded, matrix.rows, found.scales);
      const RoundedMatrix rounded = round_nearest(folded, matrix.rows, cols, options, &divided, one);
      scaled += rounded.error;
      CHECK(rounded.energy == Approx(output_energy(matrix.values, matrix.rows, gram, one)).epsilon(1e-4));
    }
    CHECK(found.unscaled_error == Approx(unscaled).epsilon(1e-5));
    CHECK(found.error == Approx(scaled).epsilon(1e-4));
  }
}

TEST_CASE("AWQ's scales are a power of the inputs' magnitudes, of one source one") {
  const std::size_t cols = 64;
  const std::vector<float> w = gaussian_weights(16 * cols, 1);
  const Matrix gram = correlated_gram(cols, 2);
  ThreadPool pool(1);
  const LinearView matrix{w, 16};
  std::vector<float> magnitudes = scales_of(cols, 3);
  magnitudes[9] = 0;
  const AwqScales given = awq_scales({&matrix, 1}, gram, magnitudes, {.group = 32}, pool);
  CHECK(given.error <= given.unscaled_error);
  const AwqScales root = awq_scales({&matrix, 1}, gram, {}, {.group = 32}, pool);
  REQUIRE(root.alpha > 0);
  const auto expected = [&](std::size_t c) {
    const auto i = static_cast<Eigen::Index>(c);
    return std::pow(std::sqrt(gram(i, i) / gram(0, 0)), root.alpha);
  };
  for (std::size_t c = 1; c < cols; ++c) {
    CHECK(root.scales[c] / root.scales[0] == Approx(expected(c)).epsilon(1e-5));
  }
  const FoldSources sources = grouped_query_sources(4, 2, 16);
  const AwqScales shared = awq_scales({&matrix, 1}, gram, {}, {.group = 32}, pool, sources);
  CHECK(shared.scales.size() == 32);
  CHECK(shared.error <= shared.unscaled_error);

  const Matrix none = Matrix::Zero(cols, cols);
  CHECK(awq_scales({&matrix, 1}, none, {}, {.group = 32}, pool).scales == std::vector<float>(cols, 1.0f));
}

TEST_CASE("SmoothQuant's scales meet inputs and weights half-way, and are 1 where either is nothing") {
  const std::size_t cols = 32;
  const std::vector<float> a = gaussian_weights(8 * cols, 1);
  std::vector<float> b = gaussian_weights(4 * cols, 2), inputs = scales_of(cols, 3);
  inputs[4] = 0;
  std::vector<float> none = a;
  for (std::size_t r = 0; r < 8; ++r) none[r * cols + 6] = 0;
  for (std::size_t r = 0; r < 4; ++r) b[r * cols + 6] = 0;
  const std::vector<LinearView> matrices = {{none, 8}, {b, 4}};
  for (const double alpha : {0.0, 0.5, 0.8, 1.0}) {
    const std::vector<float> scales = smooth_scales(matrices, inputs, alpha);
    CHECK(scales[4] == 1);
    CHECK(scales[6] == 1);
    for (const std::size_t c : {0u, 5u, 31u}) {
      const auto column = static_cast<Eigen::Index>(c);
      const float most = std::max(view(none, 8).col(column).cwiseAbs().maxCoeff(),
                                  view(b, 4).col(column).cwiseAbs().maxCoeff());
      CHECK(scales[c] == Approx(std::pow(inputs[c], alpha) / std::pow(most, 1 - alpha)).epsilon(1e-5));
    }
  }
  const FoldSources sources = grouped_query_sources(4, 1, 8);
  const std::vector<float> shared = smooth_scales(matrices, inputs, 1.0, sources);
  REQUIRE(shared.size() == 8);
  for (std::size_t i = 0; i < 8; ++i) {
    CHECK(shared[i] == std::max({inputs[i], inputs[i + 8], inputs[i + 16], inputs[i + 24]}));
  }
}

TEST_CASE("folds that do not fit are refused") {
  std::vector<float> w = gaussian_weights(4 * 32, 1), scales(32, 2.0f);
  const Matrix gram = correlated_gram(32, 2);
  ThreadPool pool(1);
  const LinearView matrix{w, 4};
  const RoundOptions options{.group = 32};
  const std::vector<float> few(31, 1.0f), negative(32, -1.0f);
  CHECK_THROWS_WITH(grouped_query_sources(6, 4, 8), Contains("heads: expected a multiple of the 4"));
  CHECK_THROWS_AS(grouped_query_sources(6, 0, 8), InvalidArgument);
  CHECK_THROWS_WITH(awq_scales({}, gram, {}, options, pool), Contains("matrices"));
  CHECK_THROWS_WITH(awq_scales({&matrix, 1}, gram, few, options, pool), Contains("magnitudes"));
  CHECK_THROWS_WITH(awq_scales({&matrix, 1}, gram, negative, options, pool), Contains("a magnitude"));
  CHECK_THROWS_WITH(awq_scales({&matrix, 1}, gram, {}, {.group = 64}, pool), Contains("group of 64"));
  CHECK_THROWS_WITH(awq_scales({&matrix, 1}, gram, {}, options, pool, {1, 2}), Contains("sources"));
  CHECK_THROWS_WITH(awq_scales({&matrix, 1}, correlated_gram(64, 1), {}, {.group = 32}, pool),
                    Contains("128 values"));
  CHECK_THROWS_WITH(smooth_scales({&matrix, 1}, scales, 1.5), Contains("alpha"));
  CHECK_THROWS_WITH(smooth_scales({&matrix, 1}, few), Contains("128 values"));
  CHECK_THROWS_AS(smooth_scales({&matrix, 1}, scales, 0.5, FoldSources(32, 32)), InvalidArgument);
  CHECK_THROWS_AS(divide_channels(scales, few), InvalidArgument);
  CHECK_THROWS_AS(divide_rows(w, few), InvalidArgument);
  CHECK_THROWS_AS(scale_columns(w, 4, few), InvalidArgument);
  CHECK_THROWS_AS(scale_columns(w, 4, few, FoldSources(32, 31)), InvalidArgument);
  Matrix g = gram;
  CHECK_THROWS_AS(divide_gram(g, few), InvalidArgument);
}
