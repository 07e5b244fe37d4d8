// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include <Eigen/LU>

#include <modicum/base/error.hpp>
#include <modicum/retrofit/ridge.hpp>

#include "support/catch.hpp"

using namespace modicum::retrofit;
using modicum::Moments;
using modicum::FormatError;
using modicum::InvalidArgument;
namespace linalg = modicum::linalg;
using Eigen::Index;
using linalg::Matrix;

namespace {

Matrix normal(Index rows, Index cols, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> distribution;
  return Matrix::NullaryExpr(rows, cols, [&] { return distribution(random); });
}

Moments moments_from(const Matrix& x, const Matrix& t) {
  return {x.transpose() * x, t.transpose() * x, t.colwise().squaredNorm().transpose()};
}

/// Rows of x with directions of unlike energy, and targets t = x Wᵀ + noise.
struct Problem {
  Matrix w, x, t;

  Problem(Index rows, Index inputs, Index targets, double noise, unsigned seed)
      : w(normal(targets, inputs, 1)), x(normal(rows, inputs, seed)) {
    for (Index c = 0; c < inputs; ++c) x.col(c) *= std::pow(0.9, c);
    t = x * w.transpose() + noise * normal(rows, targets, seed + 1);
  }
  Moments moments() const { return moments_from(x, t); }
};

double measured(const Matrix& w, const Matrix& x, const Matrix& t) {
  return (t - x * w.transpose()).squaredNorm() / t.squaredNorm();
}

}  // namespace

TEST_CASE("Ridge is the solution of its normal equations") {
  const Problem p(200, 30, 7, 0.5, 2);
  const Matrix prior = normal(7, 30, 9);
  for (const double damping : {1e-5, 1e-2, 1.0, 100.0}) {
    const Moments moments = p.moments();
    const double lambda = damping * moments.gram.trace() / 30;
    const Matrix h = moments.gram + lambda * Matrix::Identity(30, 30);
    const Matrix expected = (moments.cross + lambda * prior) * h.inverse();
    CHECK((ridge(moments, prior, damping) - expected).norm() < 1e-9 * expected.norm());
  }
  // Ever more damping ends at the prior.
  CHECK((ridge(p.moments(), prior, 1e9) - prior).norm() < 1e-6 * prior.norm());
}

TEST_CASE("The relative error of moments is the one that rows measure") {
  const Problem p(150, 20, 5, 1.0, 3);
  const Moments moments = p.moments();
  for (const unsigned seed : {4u, 5u}) {
    const Matrix w = p.w + 0.3 * normal(5, 20, seed);
    CHECK(std::abs(relative_error(w, moments) - measured(w, p.x, p.t)) < 1e-10);
  }
  CHECK(std::abs(relative_error(Matrix::Zero(5, 20), moments) - 1) < 1e-12);
  const Moments nothing{Matrix::Identity(20, 20), Matrix::Zero(5, 20), linalg::Vector::Zero(5)};
  CHECK(relative_error(p.w, nothing) == 0);
}

TEST_CASE("Moments of some inputs are those of their rows") {
  const Problem p(60, 12, 4, 0.1, 6);
  const std::vector<std::size_t> kept{0, 3, 4, 11};
  const Moments some = moments_of(p.moments(), kept);
  const Moments expected = moments_from(p.x(Eigen::all, kept), p.t);
  CHECK((some.gram - expected.gram).norm() < 1e-10);
  CHECK((some.cross - expected.cross).norm() < 1e-10);
  CHECK(some.energy == expected.energy);
}

TEST_CASE("The damping is the one that does best on rows that the fit did not see") {
  const Problem seen(40, 30, 6, 2.0, 7), unseen(400, 30, 6, 2.0, 20);
  const Matrix prior = Matrix::Zero(6, 30);
  const std::array candidates{1e-6, 1e-2, 1e-1, 0.5, 10.0};
  const RidgeFit best = ridge_select(seen.moments(), unseen.moments(), prior, candidates);
  double least = std::numeric_limits<double>::infinity(), chosen = 0;
  for (const double damping : candidates) {
    const double error = measured(ridge(seen.moments(), prior, damping), unseen.x, unseen.t);
    if (error <= least) {
      least = error;
      chosen = damping;
    }
  }
  CHECK(best.damping == chosen);
  CHECK(chosen > 1e-6);
  CHECK(std::abs(best.held_out_error - least) < 1e-10);
  CHECK(std::abs(best.error - measured(best.w, seen.x, seen.t)) < 1e-10);
  CHECK(best.error < best.held_out_error);
  CHECK(best.w == ridge(seen.moments(), prior, chosen));
}

TEST_CASE("Of dampings that do equally well the larger is taken") {
  const Problem p(100, 8, 3, 0.0, 8);
  const Moments nothing{Matrix::Identity(8, 8), Matrix::Zero(3, 8), linalg::Vector::Zero(3)};
  const std::array candidates{1e-4, 1e-3, 1e-2};
  CHECK(ridge_select(p.moments(), nothing, p.w, candidates).damping == 1e-2);
}

TEST_CASE("Fewer rows than inputs are fitted, near the prior where they say nothing") {
  const Problem p(10, 24, 3, 0.0, 10);
  const Matrix prior = normal(3, 24, 11);
  for (const double damping : {0.0, 1e-12, 1e-5}) {
    const Matrix w = ridge(p.moments(), prior, damping);
    REQUIRE(w.allFinite());
    CHECK(measured(w, p.x, p.t) < 1e-3);
    const Matrix basis = Eigen::FullPivLU<Matrix>(p.x).kernel();
    // Without damping, rounding alone decides there.
    CHECK(((w - prior) * basis).norm() < (damping < 1e-8 ? 1e-2 : 1e-6) * prior.norm());
  }
  const Moments empty{Matrix::Zero(24, 24), Matrix::Zero(3, 24), linalg::Vector::Zero(3)};
  CHECK((ridge(empty, prior, 1e-3) - prior).norm() < 1e-9 * prior.norm());
}

TEST_CASE("Moments that are not finite, indefinite or of other shapes are refused") {
  const Problem p(50, 6, 2, 0.1, 12);
  const Matrix prior = Matrix::Zero(2, 6);
  for (const double bad :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    Moments gram = p.moments(), cross = p.moments();
    gram.gram(2, 3) = bad;
    cross.cross(1, 1) = bad;
    CHECK_THROWS_AS(ridge(gram, prior, 1e-3), FormatError);
    CHECK_THROWS_AS(ridge(cross, prior, 1e-3), FormatError);
  }
  Moments indefinite = p.moments();
  indefinite.gram(0, 0) = -100 * indefinite.gram.trace();
  CHECK_THROWS_AS(ridge(indefinite, prior, 1e-3), FormatError);
  CHECK_THROWS_AS(ridge(p.moments(), Matrix::Zero(2, 5), 1e-3), InvalidArgument);
  CHECK_THROWS_AS(ridge(p.moments(), Matrix::Zero(3, 6), 1e-3), InvalidArgument);
}
