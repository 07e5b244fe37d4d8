// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>
#include <random>

#include <modicum/base/error.hpp>
#include <modicum/retrofit/low_rank.hpp>

#include "support/catch.hpp"

using namespace modicum;
using namespace modicum::retrofit;
using Eigen::Index;
using linalg::Matrix;

namespace {

Matrix normal(Index rows, Index cols, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> distribution;
  return Matrix::NullaryExpr(rows, cols, [&] { return distribution(random); });
}

/// The second moment of inputs whose directions differ much in energy.
Matrix uneven_gram(Index n, unsigned seed) {
  Matrix x = normal(4 * n, n, seed) * normal(n, n, seed + 1);
  for (Index c = 0; c < n; ++c) x.col(c) *= std::pow(0.8, c);
  return x.transpose() * x / static_cast<double>(4 * n);
}

double energy(const Matrix& w, const Matrix& gram) {
  return (w * gram * w.transpose()).trace();
}

}  // namespace

TEST_CASE("Two factors lose the squared singular values of W G^½ that are left out") {
  for (const auto& [rows, cols] : {std::pair<Index, Index>{12, 20}, {20, 12}, {16, 16}}) {
    const Matrix w = normal(rows, cols, 1), gram = uneven_gram(cols, 2);
    Matrix l = gram;
    REQUIRE(linalg::cholesky(l));
    const Matrix lower = l.triangularView<Eigen::Lower>();
    const linalg::Vector squares = linalg::svd(w * lower).values.cwiseAbs2();
    for (const Index rank : {1, 5, 12}) {
      const LowRank factors = low_rank(w, gram, static_cast<std::size_t>(rank));
      REQUIRE(factors.u.rows() == rows);
      REQUIRE(factors.u.cols() == rank);
      REQUIRE(factors.v.rows() == rank);
      REQUIRE(factors.v.cols() == cols);
      const double lost = squares.tail(squares.size() - rank).sum() / squares.sum();
      CHECK(std::abs(factors.loss - lost) < 1e-9);
      CHECK(std::abs(factors.loss - energy(w - factors.u * factors.v, gram) / energy(w, gram)) < 1e-12);
    }
  }
}

TEST_CASE("They lose less of the output than the factors of W itself") {
  const Matrix w = normal(24, 32, 3), gram = uneven_gram(32, 4);
  const linalg::SingularValues plain = linalg::svd(w);
  for (const Index rank : {2, 8, 20}) {
    const Matrix kept =
        plain.u.leftCols(rank) * plain.values.head(rank).asDiagonal() * plain.vt.topRows(rank);
    CHECK(low_rank(w, gram, static_cast<std::size_t>(rank)).loss <
          0.9 * energy(w - kept, gram) / energy(w, gram));
  }
}

TEST_CASE("A layer of low rank, or inputs of few directions, are kept exactly") {
  const Matrix thin = normal(20, 3, 5) * normal(3, 14, 6);
  const LowRank exact = low_rank(thin, uneven_gram(14, 7), 5);
  CHECK((exact.u * exact.v - thin).norm() < 1e-9 * thin.norm());
  const Matrix x = normal(4, 14, 8);  // four inputs only
  const Matrix w = normal(20, 14, 9);
  const LowRank seen = low_rank(w, x.transpose() * x, 6);
  CHECK((x * (w - seen.u * seen.v).transpose()).norm() < 1e-6 * (x * w.transpose()).norm());
  CHECK(seen.u.allFinite());
  CHECK(low_rank(w, Matrix::Zero(14, 14), 2).loss == 0.0);
}

TEST_CASE("Damping keeps more of what a layer does to inputs that the text did not have") {
  const Matrix w = normal(20, 14, 10), x = normal(5, 14, 11);
  const Matrix gram = x.transpose() * x / 5.0, unseen = Matrix::Identity(14, 14);
  const LowRank plain = low_rank(w, gram, 7), damped = low_rank(w, gram, 7, 0.1);
  CHECK(energy(w - damped.u * damped.v, unseen) < energy(w - plain.u * plain.v, unseen));
  CHECK(damped.loss >= plain.loss);
}

TEST_CASE("Factors of nothing, too many, and of what does not fit are refused") {
  const Matrix w = normal(6, 8, 12), gram = uneven_gram(8, 13);
  CHECK_THROWS_AS(low_rank(w, gram, 0), InvalidArgument);
  CHECK_THROWS_AS(low_rank(w, gram, 7), InvalidArgument);
  CHECK_THROWS_AS(low_rank(w, uneven_gram(6, 13), 2), InvalidArgument);
  CHECK_THROWS_AS(low_rank(w, gram, 2, -0.1), InvalidArgument);
  CHECK_THROWS_AS(low_rank(w * std::numeric_limits<double>::infinity(), gram, 2), InvalidArgument);
}
