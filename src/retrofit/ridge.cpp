// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <string>

#include <modicum/base/error.hpp>
#include <modicum/retrofit/ridge.hpp>

namespace modicum::retrofit {
namespace {

using linalg::Matrix;

constexpr double kDampings[] = {1e-5, 1e-4, 1e-3, 1e-2, 1e-1};

void check(const Moments& moments, const Matrix& w0) {
  const bool fits = moments.gram.rows() == moments.gram.cols() &&
                    moments.cross.cols() == moments.gram.cols() && w0.rows() == moments.cross.rows() &&
                    w0.cols() == moments.cross.cols();
  if (!fits) {
    fail({.op = "ridge",
          .what = "shapes",
          .expected = "gram [n, n], cross [m, n] and prior [m, n]",
          .got = "gram of " + std::to_string(moments.gram.cols()) + ", cross of " +
                 std::to_string(moments.cross.cols()) + " and prior of " + std::to_string(w0.cols()) +
                 " columns"});
  }
  if (!moments.gram.allFinite() || !moments.cross.allFinite()) {
    fail<FormatError>({.op = "ridge",
                       .what = "statistics",
                       .expected = "finite sums",
                       .got = "NaN or infinity",
                       .todo = "check the weights, and the calibration text for tokens that overflow"});
  }
}

}  // namespace

Moments moments_of(const Moments& all, std::span<const std::size_t> kept) {
  return {all.gram(kept, kept), all.cross(Eigen::all, kept), all.energy};
}

double relative_error(const Matrix& w, const Moments& moments) {
  const double total = moments.energy.sum();
  if (!(total > 0)) return 0;
  Matrix product;
  linalg::multiply(w, linalg::Transpose::no, moments.gram, linalg::Transpose::no, product);
  const double error = total - 2 * w.cwiseProduct(moments.cross).sum() + product.cwiseProduct(w).sum();
  return std::max(0.0, error / total);
}

Matrix ridge(const Moments& moments, const Matrix& w0, double damping) {
  check(moments, w0);
  const auto n = static_cast<double>(std::max<Eigen::Index>(1, moments.gram.rows()));
  const double scale = std::max(moments.gram.trace() / n, 1e-30);
  // A Gram matrix of fewer rows than inputs is only semi-definite; rounding may leave it indefinite.
  for (double factor = damping; factor <= std::max(1.0, damping); factor = std::max(factor * 10, 1e-8)) {
    Matrix l = moments.gram;
    l.diagonal().array() += factor * scale;
    if (!linalg::cholesky(l)) continue;
    Matrix w = moments.cross + factor * scale * w0;
    linalg::solve_right(l, w);
    return w;
  }
  fail<FormatError>({.op = "ridge",
                     .what = "Gram matrix",
                     .expected = "a positive semi-definite one",
                     .got = "one that is not",
                     .todo = "use more calibration text"});
}

RidgeFit ridge_select(const Moments& moments, const Moments& held_out, const Matrix& w0,
                      std::span<const double> candidates) {
  RidgeFit best;
  bool first = true;
  for (const double damping : candidates) {
    Matrix w = ridge(moments, w0, damping);
    const double error = relative_error(w, held_out);
    if (!first && error > best.held_out_error) continue;
    best = {.w = std::move(w), .damping = damping, .error = 0, .held_out_error = error};
    first = false;
  }
  best.error = relative_error(best.w, moments);
  return best;
}

std::span<const double> default_dampings() {
  return kDampings;
}

}  // namespace modicum::retrofit
