// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <complex>
#include <limits>
#include <numbers>
#include <random>
#include <vector>

#include <Eigen/QR>

#include <modicum/base/error.hpp>
#include <modicum/retrofit/kv_merge.hpp>

#include "support/catch.hpp"

using namespace modicum;
using namespace modicum::retrofit;
using Eigen::Index;
using linalg::Vector;
using Rows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

namespace {

constexpr std::size_t kDim = 8;
constexpr std::size_t kHidden = 48;
constexpr std::size_t kTokens = 700;  // more than one block of the statistics

linalg::Matrix normal(Index rows, Index cols, std::mt19937& random) {
  std::normal_distribution<double> distribution;
  return linalg::Matrix::NullaryExpr(rows, cols, [&] { return distribution(random); });
}

Vector normal(Index size, std::mt19937& random) {
  return normal(size, 1, random);
}

/// Multiplies each of a head's frequencies by a complex number: turned(rows)_f = by[f] rows_f.
linalg::Matrix turned(const linalg::Matrix& rows, const Eigen::VectorXcd& by) {
  linalg::Matrix out(rows.rows(), rows.cols());
  const Index half = rows.rows() / 2;
  for (Index f = 0; f < half; ++f) {
    out.row(f) = by[f].real() * rows.row(f) - by[f].imag() * rows.row(f + half);
    out.row(f + half) = by[f].imag() * rows.row(f) + by[f].real() * rows.row(f + half);
  }
  return out;
}

Eigen::VectorXcd phases(std::mt19937& random) {
  std::uniform_real_distribution<double> angle(0.0, 2.0 * std::numbers::pi);
  return Eigen::VectorXcd::NullaryExpr(kDim / 2, [&] { return std::polar(1.0, angle(random)); });
}

linalg::Matrix orthogonal(std::mt19937& random) {
  return Eigen::HouseholderQR<linalg::Matrix>(normal(kDim, kDim, random)).householderQ();
}

/// KV heads h are made from source `of[h]`: keys turned by phases, values by an orthogonal matrix, and noise.
AttentionWeights related_heads(const std::vector<std::size_t>& of, std::size_t per_kv, double noise,
                               std::mt19937& random, bool bias = true) {
  const Index d = kDim, n = static_cast<Index>(of.size());
  const Index queries = n * static_cast<Index>(per_kv);
  std::vector<linalg::Matrix> keys, values;  // the bias is the last column
  for (std::size_t i = 0; i <= *std::max_element(of.begin(), of.end()); ++i) {
    keys.push_back(normal(d, kHidden + 1, random));
    values.push_back(normal(d, kHidden + 1, random));
  }
  AttentionWeights w;
  w.shape = {.heads = of.size() * per_kv, .kv_heads = of.size(), .head_dim = kDim};
  w.q = normal(queries * d, kHidden, random);
  w.o = normal(kHidden, queries * d, random);
  linalg::Matrix k(n * d, kHidden + 1), v(n * d, kHidden + 1);
  for (Index h = 0; h < n; ++h) {
    const std::size_t source = of[static_cast<std::size_t>(h)];
    k.middleRows(h * d, d) = turned(keys[source], phases(random)) + noise * normal(d, kHidden + 1, random);
    v.middleRows(h * d, d) = orthogonal(random) * values[source] + noise * normal(d, kHidden + 1, random);
  }
  w.k = k.leftCols(kHidden);
  w.v = v.leftCols(kHidden);
  if (bias) {
    w.k_bias = k.rightCols(1);
    w.v_bias = v.rightCols(1);
    w.q_bias = normal(queries * d, random);
  }
  return w;
}

linalg::Matrix projected(const linalg::Matrix& x, const linalg::Matrix& w, const Vector& bias) {
  linalg::Matrix y = x * w.transpose();
  if (bias.size() > 0) y.rowwise() += bias.transpose();
  return y;
}

struct Activations {
  Rows q, k, v;
};

Activations activations(const AttentionWeights& w, const linalg::Matrix& x) {
  return {projected(x, w.q, w.q_bias).cast<float>(), projected(x, w.k, w.k_bias).cast<float>(),
          projected(x, w.v, w.v_bias).cast<float>()};
}

KvStatistics statistics_of(const AttentionWeights& w, const linalg::Matrix& x, std::size_t threads = 1) {
  ThreadPool pool(threads);
  const Activations a = activations(w, x);
  KvStatistics statistics(w.shape);
  statistics.update(pool, a.q.data(), a.k.data(), a.v.data(), static_cast<std::size_t>(x.rows()));
  return statistics;
}

/// One head's rows with RoPE: row t's frequency f turns by t θ_f.
linalg::Matrix rotated(const linalg::Matrix& rows) {
  linalg::Matrix out(rows.rows(), rows.cols());
  for (Index t = 0; t < rows.rows(); ++t) {
    Eigen::VectorXcd by(kDim / 2);
    for (Index f = 0; f < by.size(); ++f)
      by[f] = std::polar(1.0, static_cast<double>(t) * std::pow(10.0, -f));
    out.row(t) = turned(rows.row(t).transpose(), by).transpose();
  }
  return out;
}

/// Causal attention with RoPE: what the layer adds to its stream, [T, hidden].
linalg::Matrix attention(const AttentionWeights& w, const linalg::Matrix& x) {
  const Index d = kDim, tokens = x.rows();
  const linalg::Matrix q = projected(x, w.q, w.q_bias), k = projected(x, w.k, w.k_bias),
                       v = projected(x, w.v, w.v_bias);
  linalg::Matrix out = linalg::Matrix::Zero(tokens, w.o.rows());
  for (std::size_t head = 0; head < w.shape.heads; ++head) {
    const Index at = static_cast<Index>(head) * d;
    const Index kv = static_cast<Index>(head / w.shape.queries_per_kv()) * d;
    linalg::Matrix scores = 0.03 * rotated(q.middleCols(at, d)) * rotated(k.middleCols(kv, d)).transpose();
    for (Index t = 0; t < tokens; ++t) {
      scores.row(t).tail(tokens - t - 1).setConstant(-std::numeric_limits<double>::infinity());
      scores.row(t) = (scores.row(t).array() - scores.row(t).maxCoeff()).exp();
      scores.row(t) /= scores.row(t).sum();
    }
    out += scores * v.middleCols(kv, d) * w.o.middleCols(at, d).transpose();
  }
  return out;
}

double relative(const linalg::Matrix& ours, const linalg::Matrix& theirs) {
  return (ours - theirs).norm() / theirs.norm();
}

constexpr KvMergeMethod kMethods[] = {KvMergeMethod::complex_pca, KvMergeMethod::procrustes,
                                      KvMergeMethod::mean, KvMergeMethod::first};

}  // namespace

TEST_CASE("Statistics are the second moments of complex keys, queries and values") {
  std::mt19937 random(1);
  const AttentionWeights w = related_heads({0, 1, 2}, 2, 0.1, random);
  const linalg::Matrix x = normal(kTokens, kHidden, random);
  const KvStatistics statistics = statistics_of(w, x);
  REQUIRE(statistics.count() == kTokens);
  const Activations a = activations(w, x);
  const linalg::Matrix v = a.v.cast<double>();
  CHECK(relative(statistics.value_gram(), v.transpose() * v / kTokens) < 1e-6);
  for (Index f = 0; f < Index{kDim / 2}; ++f) {
    Eigen::MatrixXcd keys(kTokens, 3);
    for (Index h = 0; h < 3; ++h) {
      keys.col(h).real() = a.k.col(h * kDim + f).cast<double>();
      keys.col(h).imag() = a.k.col(h * kDim + f + kDim / 2).cast<double>();
    }
    const Eigen::MatrixXcd gram = keys.transpose() * keys.conjugate() / double{kTokens};
    CHECK((statistics.key_gram(static_cast<std::size_t>(f)) - gram).norm() < 1e-6 * gram.norm());
    for (Index h = 0; h < 6; ++h) {
      const double energy = a.q.col(h * kDim + f).cast<double>().squaredNorm() +
                            a.q.col(h * kDim + f + kDim / 2).cast<double>().squaredNorm();
      CHECK(std::abs(statistics.query_energy()(f, h) - energy / kTokens) < 1e-6 * energy / kTokens);
    }
  }
}

TEST_CASE("Statistics are bit-identical for any number of threads") {
  std::mt19937 random(2);
  const AttentionWeights w = related_heads(std::vector<std::size_t>(40, 0), 1, 0.5, random);
  const linalg::Matrix x = normal(kTokens, kHidden, random);
  const KvStatistics one = statistics_of(w, x, 1), three = statistics_of(w, x, 3);
  CHECK((one.value_gram().array() == three.value_gram().array()).all());
  CHECK((one.query_energy().array() == three.query_energy().array()).all());
  for (std::size_t f = 0; f < kDim / 2; ++f)
    CHECK((one.key_gram(f).array() == three.key_gram(f).array()).all());
}

TEST_CASE("Statistics of two texts merge into those of both") {
  std::mt19937 random(3);
  const AttentionWeights w = related_heads({0, 1}, 2, 0.1, random);
  const linalg::Matrix x = normal(kTokens, kHidden, random);
  KvStatistics merged = statistics_of(w, x.topRows(100));
  merged.merge(statistics_of(w, x.bottomRows(kTokens - 100)));
  const KvStatistics whole = statistics_of(w, x);
  CHECK(merged.count() == whole.count());
  CHECK(relative(merged.value_gram(), whole.value_gram()) < 1e-6);
  CHECK(relative(merged.query_energy(), whole.query_energy()) < 1e-12);
  CHECK((merged.key_gram(1) - whole.key_gram(1)).norm() < 1e-6 * whole.key_gram(1).norm());
  CHECK_THROWS_AS(merged.merge(KvStatistics({.heads = 2, .kv_heads = 1, .head_dim = 8})), InvalidArgument);
}

TEST_CASE("As many KV heads as before leave a layer as it is") {
  std::mt19937 random(4);
  const AttentionWeights w = related_heads({0, 1, 2, 3}, 2, 0.1, random);
  const KvStatistics statistics = statistics_of(w, normal(kTokens, kHidden, random));
  for (const KvMergeMethod method : kMethods) {
    const KvMerge merge = merge_kv(w, statistics, {.kv_heads = 4, .method = method});
    CHECK(merge.weights.q == w.q);
    CHECK(merge.weights.k == w.k);
    CHECK(merge.weights.v == w.v);
    CHECK(merge.weights.o == w.o);
    CHECK(merge.weights.k_bias == w.k_bias);
    CHECK(merge.score_error < 1e-12);
    CHECK(merge.value_error < 1e-12);
  }
}

TEST_CASE("Heads that are turned copies of each other merge exactly, wherever they stand") {
  std::mt19937 random(5);
  const linalg::Matrix x = normal(60, kHidden, random);
  for (const bool bias : {false, true}) {
    const AttentionWeights w = related_heads({0, 1, 1, 2, 0, 2}, 2, 0.0, random, bias);
    const KvStatistics statistics = statistics_of(w, normal(kTokens, kHidden, random));
    for (const KvMergeMethod method : {KvMergeMethod::complex_pca, KvMergeMethod::procrustes}) {
      const KvMerge merge = merge_kv(w, statistics, {.kv_heads = 3, .method = method});
      CHECK(merge.groups == std::vector<std::vector<std::size_t>>{{0, 4}, {1, 2}, {3, 5}});
      CHECK(merge.query_heads == std::vector<std::size_t>{0, 1, 8, 9, 2, 3, 4, 5, 6, 7, 10, 11});
      CHECK(merge.score_error < 1e-5);
      CHECK(merge.value_error < 1e-5);
      CHECK(relative(attention(merge.weights, x), attention(w, x)) < 1e-5);
    }
  }
}

TEST_CASE("The report is the loss that is measured on the text of the statistics") {
  std::mt19937 random(6);
  const AttentionWeights w = related_heads({0, 0, 1, 1}, 2, 0.3, random);
  const linalg::Matrix x = normal(kTokens, kHidden, random);
  const KvStatistics statistics = statistics_of(w, x);
  for (const KvMergeMethod method : kMethods) {
    const KvMerge merge = merge_kv(w, statistics, {.kv_heads = 2, .method = method});
    const Activations before = activations(w, x), after = activations(merge.weights, x);
    double lost = 0, all = 0;
    for (std::size_t to = 0; to < 8; ++to) {
      const std::size_t from = merge.query_heads[to];
      const Index old_at = static_cast<Index>(from) * kDim, at = static_cast<Index>(to) * kDim;
      const linalg::Matrix exact =
          before.v.middleCols(static_cast<Index>(from / 2) * kDim, kDim).cast<double>() *
          w.o.middleCols(old_at, kDim).transpose();
      const linalg::Matrix ours = after.v.middleCols(static_cast<Index>(to / 4) * kDim, kDim).cast<double>() *
                                  merge.weights.o.middleCols(at, kDim).transpose();
      lost += (exact - ours).squaredNorm();
      all += exact.squaredNorm();
    }
    CHECK(std::abs(merge.value_error - lost / all) < 1e-4 * (lost / all));
  }
}

TEST_CASE("Complex principal components lose the eigenvalues that they leave out") {
  std::mt19937 random(7);
  const AttentionWeights w = related_heads({0, 0, 0}, 1, 0.4, random);
  const KvStatistics statistics = statistics_of(w, normal(kTokens, kHidden, random));
  const KvMerge merge = merge_kv(w, statistics, {.kv_heads = 1});
  double lost = 0, all = 0;
  for (std::size_t f = 0; f < kDim / 2; ++f) {
    const Vector a = statistics.query_energy().row(static_cast<Index>(f)).transpose().cwiseSqrt();
    const Eigen::MatrixXcd m = a.asDiagonal() * statistics.key_gram(f) * a.asDiagonal();
    // A Hermitian matrix's eigenvalues are those of this real one, each twice.
    linalg::Matrix real(6, 6);
    real << m.real(), -m.imag(), m.imag(), m.real();
    const Vector values = linalg::eigh(real).values;
    lost += values.head(4).sum() / 2;
    all += values.sum() / 2;
  }
  CHECK(std::abs(merge.score_error - lost / all) < 1e-9 * (lost / all));
}

TEST_CASE("On related heads complex components lose less than turned means, and those less than means") {
  std::mt19937 random(8);
  const AttentionWeights w = related_heads({0, 0, 0, 0, 1, 1, 1, 1}, 2, 0.3, random);
  const linalg::Matrix x = normal(40, kHidden, random);
  const KvStatistics statistics = statistics_of(w, normal(kTokens, kHidden, random));
  const auto merged = [&](KvMergeMethod method) {
    return merge_kv(w, statistics, {.kv_heads = 2, .method = method, .grouping = KvGrouping::consecutive});
  };
  const KvMerge pca = merged(KvMergeMethod::complex_pca), turned = merged(KvMergeMethod::procrustes),
                mean = merged(KvMergeMethod::mean);
  CHECK(pca.score_error < turned.score_error);
  CHECK(turned.score_error < 0.5 * mean.score_error);
  CHECK(pca.value_error < turned.value_error);
  CHECK(turned.value_error < 0.5 * mean.value_error);
  const linalg::Matrix exact = attention(w, x);
  CHECK(relative(attention(pca.weights, x), exact) < relative(attention(turned.weights, x), exact));
  CHECK(relative(attention(turned.weights, x), exact) < relative(attention(mean.weights, x), exact));
}

TEST_CASE("Means and first heads are what they say, and leave queries as they were") {
  std::mt19937 random(9);
  const AttentionWeights w = related_heads({0, 1, 2, 3}, 1, 0.0, random);
  const KvStatistics statistics = statistics_of(w, normal(kTokens, kHidden, random));
  const Index d = kDim;
  const KvMerge mean = merge_kv(
      w, statistics, {.kv_heads = 2, .method = KvMergeMethod::mean, .grouping = KvGrouping::consecutive});
  CHECK(relative(mean.weights.k.topRows(d), (w.k.topRows(d) + w.k.middleRows(d, d)) / 2.0) < 1e-14);
  CHECK(relative(mean.weights.v.bottomRows(d), (w.v.bottomRows(d) + w.v.middleRows(2 * d, d)) / 2.0) < 1e-14);
  CHECK(relative(mean.weights.v_bias.head(d), (w.v_bias.head(d) + w.v_bias.segment(d, d)) / 2.0) < 1e-14);
  CHECK(mean.weights.q == w.q);
  CHECK(mean.weights.o == w.o);
  const KvMerge first = merge_kv(
      w, statistics, {.kv_heads = 2, .method = KvMergeMethod::first, .grouping = KvGrouping::consecutive});
  CHECK(first.weights.k.bottomRows(d) == w.k.middleRows(2 * d, d));
  CHECK(first.weights.v.topRows(d) == w.v.topRows(d));
  CHECK(first.weights.q == w.q);
}

TEST_CASE("A merged key has the mean energy of the keys that it stands for") {
  std::mt19937 random(10);
  AttentionWeights w = related_heads({0, 0}, 1, 0.1, random);
  w.k.topRows(kDim) *= 5.0;
  w.k_bias.head(kDim) *= 5.0;
  const linalg::Matrix x = normal(kTokens, kHidden, random);
  const KvStatistics statistics = statistics_of(w, x);
  const KvMerge merge = merge_kv(w, statistics, {.kv_heads = 1});
  const KvStatistics after = statistics_of(merge.weights, x);
  for (std::size_t f = 0; f < kDim / 2; ++f) {
    const double mean = statistics.key_gram(f).trace().real() / 2.0;
    CHECK(std::abs(after.key_gram(f)(0, 0).real() - mean) < 1e-5 * mean);
  }
  CHECK(std::abs(after.value_gram().trace() - statistics.value_gram().trace() / 2.0) <
        1e-5 * after.value_gram().trace());
}

TEST_CASE("Merges do not change from run to run, and groups of one size are found for every divisor") {
  std::mt19937 random(11);
  const AttentionWeights w = related_heads({0, 1, 2, 2, 1, 0, 1, 0, 2, 0, 1, 2}, 1, 0.2, random);
  const KvStatistics statistics = statistics_of(w, normal(kTokens, kHidden, random));
  for (const std::size_t kv_heads : {1u, 2u, 3u, 4u, 6u, 12u}) {
    const KvMerge merge = merge_kv(w, statistics, {.kv_heads = kv_heads});
    const KvMerge again = merge_kv(w, statistics, {.kv_heads = kv_heads});
    CHECK(merge.weights.k == again.weights.k);
    CHECK(merge.weights.o == again.weights.o);
    std::vector<std::size_t> heads;
    for (const auto& group : merge.groups) {
      CHECK(group.size() == 12 / kv_heads);
      heads.insert(heads.end(), group.begin(), group.end());
    }
    std::sort(heads.begin(), heads.end());
    for (std::size_t h = 0; h < 12; ++h) CHECK(heads.at(h) == h);
  }
  const KvMerge merge = merge_kv(w, statistics, {.kv_heads = 3});
  CHECK(merge.groups.at(0) == std::vector<std::size_t>{0, 5, 7, 9});
  CHECK(merge.groups.at(1) == std::vector<std::size_t>{1, 4, 6, 10});
}

TEST_CASE("Dead heads merge without loss and without numbers that are not finite") {
  std::mt19937 random(12);
  AttentionWeights w = related_heads({0, 1}, 1, 0.1, random, false);
  w.q.topRows(kDim).setZero();
  w.k.topRows(kDim).setZero();
  w.o.leftCols(kDim).setZero();
  const KvStatistics statistics = statistics_of(w, normal(kTokens, kHidden, random));
  const KvMerge merge = merge_kv(w, statistics, {.kv_heads = 1});
  CHECK(merge.score_error < 1e-12);
  CHECK(merge.value_error < 1e-12);
  const linalg::Matrix x = normal(20, kHidden, random);
  CHECK(relative(attention(merge.weights, x), attention(w, x)) < 1e-9);
  w.k.setZero();
  w.v.setZero();
  const KvMerge nothing = merge_kv(w, statistics_of(w, x), {.kv_heads = 1});
  CHECK(nothing.weights.q.allFinite());
  CHECK(nothing.weights.o.allFinite());
  CHECK(nothing.weights.k.isZero());
}

TEST_CASE("What cannot be merged is refused by name") {
  std::mt19937 random(13);
  const AttentionWeights w = related_heads({0, 1, 2, 3}, 1, 0.1, random);
  const KvStatistics statistics = statistics_of(w, normal(20, kHidden, random));
  CHECK_THROWS_AS(merge_kv(w, statistics, {.kv_heads = 0}), InvalidArgument);
  CHECK_THROWS_AS(merge_kv(w, statistics, {.kv_heads = 5}), InvalidArgument);
  CHECK_THROWS_AS(merge_kv(w, statistics, {.kv_heads = 3}), Unsupported);
  CHECK_THROWS_AS(merge_kv(w, KvStatistics(w.shape), {.kv_heads = 2}), InvalidArgument);
  AttentionWeights normalised = w;
  normalised.qk_norm = true;
  CHECK_THROWS_AS(merge_kv(normalised, statistics, {.kv_heads = 2}), Unsupported);
  AttentionWeights narrow = w;
  narrow.v.conservativeResize(3 * kDim, kHidden);
  CHECK_THROWS_AS(merge_kv(narrow, statistics, {.kv_heads = 2}), InvalidArgument);
  AttentionWeights broken = w;
  broken.o(3, 5) = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS_AS(merge_kv(broken, statistics, {.kv_heads = 2}), InvalidArgument);
  linalg::Matrix infinite = normal(20, kHidden, random);
  infinite(2, 2) = 1e38;
  CHECK_THROWS_AS(merge_kv(w, statistics_of(w, infinite), {.kv_heads = 2}), InvalidArgument);
  CHECK_THROWS_AS(KvStatistics({.heads = 3, .kv_heads = 2, .head_dim = 8}), InvalidArgument);
  CHECK_THROWS_AS(KvStatistics({.heads = 2, .kv_heads = 2, .head_dim = 7}), InvalidArgument);
}
