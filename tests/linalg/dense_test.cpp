// SPDX-License-Identifier: Apache-2.0
#include <modicum/base/error.hpp>
#include <modicum/linalg/dense.hpp>

#include "support/catch.hpp"

namespace modicum {
namespace {

using linalg::Matrix;
using linalg::Transpose;

Matrix random(Eigen::Index rows, Eigen::Index cols, unsigned seed) {
  std::srand(seed);
  return Matrix::Random(rows, cols);
}

Matrix positive(Eigen::Index n, unsigned seed) {
  const Matrix a = random(n, n + 5, seed);
  return a * a.transpose();
}

}  // namespace

TEST_CASE("A product of transposed matrices is that of Eigen") {
  const Matrix a = random(7, 5, 1), b = random(7, 6, 2);
  Matrix c;
  linalg::multiply(a, Transpose::yes, b, Transpose::no, c);
  CHECK((c - a.transpose() * b).norm() < 1e-12);
  linalg::multiply(b, Transpose::yes, a, Transpose::no, c);
  CHECK((c - b.transpose() * a).norm() < 1e-12);
  Matrix sum = Matrix::Ones(7, 7);
  linalg::multiply(a, Transpose::no, a, Transpose::yes, sum, -2.0, 1.0);
  CHECK((sum - (Matrix::Ones(7, 7) - 2.0 * a * a.transpose())).norm() < 1e-12);
  CHECK_THROWS_AS(linalg::multiply(a, Transpose::no, b, Transpose::no, c), InvalidArgument);
}

TEST_CASE("A Cholesky factor solves from the right and inverts") {
  const Matrix a = positive(40, 3);
  Matrix l = a;
  REQUIRE(linalg::cholesky(l));
  Matrix x = random(9, 40, 4);
  const Matrix right = x;
  linalg::solve_right(l, x);
  CHECK((x * a - right).norm() < 1e-8 * right.norm());
  linalg::invert(l);
  CHECK((l * a - Matrix::Identity(40, 40)).norm() < 1e-7);
}

TEST_CASE("A matrix that is not positive definite has no Cholesky factor") {
  Matrix a = positive(10, 5);
  a(9, 9) = -1.0;
  CHECK_FALSE(linalg::cholesky(a));
}

TEST_CASE("Eigenvectors rebuild a symmetric matrix, with ascending values") {
  const Matrix a = positive(30, 6);
  const linalg::Eigensystem e = linalg::eigh(a);
  CHECK((e.vectors * e.values.asDiagonal() * e.vectors.transpose() - a).norm() < 1e-9 * a.norm());
  for (Eigen::Index i = 1; i < 30; ++i) CHECK(e.values[i] >= e.values[i - 1]);
}

TEST_CASE("Singular vectors rebuild a matrix, with descending values") {
  const Matrix a = random(12, 20, 7);
  const linalg::SingularValues s = linalg::svd(a);
  CHECK((s.u * s.values.asDiagonal() * s.vt - a).norm() < 1e-10 * a.norm());
  for (Eigen::Index i = 1; i < 12; ++i) CHECK(s.values[i] <= s.values[i - 1]);
}

TEST_CASE("The library that serves solves has a name") {
  CHECK_FALSE(linalg::backend().empty());
}

}  // namespace modicum
