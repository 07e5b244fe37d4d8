// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <numeric>
#include <string>

#include <modicum/base/error.hpp>
#include <modicum/retrofit/channels.hpp>

namespace modicum::retrofit {
namespace {

using linalg::Matrix;
using linalg::Transpose;
using linalg::Vector;

constexpr std::size_t kSteps = 64;

/// The `count` of `alive` with the smallest scores; of equal ones the first.
std::vector<std::size_t> cheapest(const std::vector<std::size_t>& alive, const Vector& scores,
                                  std::size_t count) {
  std::vector<std::size_t> order = alive;
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return scores[static_cast<Eigen::Index>(a)] < scores[static_cast<Eigen::Index>(b)];
  });
  order.resize(count);
  return order;
}

/// (gram + λ I)⁻¹.
Matrix damped_inverse(const Matrix& gram, double damping) {
  const double scale = std::max(gram.trace() / static_cast<double>(gram.rows()), 1e-30);
  for (double factor = damping; factor <= 10; factor *= 10) {
    Matrix l = gram;
    l.diagonal().array() += factor * scale;
    if (!linalg::cholesky(l)) continue;
    linalg::invert(l);
    return l;
  }
  fail<FormatError>({.op = "choose_channels",
                     .what = "Gram matrix",
                     .expected = "a positive semi-definite one",
                     .got = "one that is not",
                     .todo = "use more calibration text"});
}

/// Removes the inputs `gone` from the fit `w` and from the inverse of its Gram matrix: with B = gone,
/// W −= W_B [H⁻¹]_BB⁻¹ [H⁻¹]_B and the same for H⁻¹.
void remove(const std::vector<std::size_t>& gone, Matrix& inverse, Matrix& w) {
  const Matrix rows = inverse(gone, Eigen::all);
  Matrix block = inverse(gone, gone);
  block.diagonal().array() += 1e-12 * block.trace();
  if (!linalg::cholesky(block)) return;  // numerically nothing is left of them
  Matrix factor_h = inverse(Eigen::all, gone);
  Matrix factor_w = w(Eigen::all, gone);
  linalg::solve_right(block, factor_h);
  linalg::solve_right(block, factor_w);
  linalg::multiply(factor_h, Transpose::no, rows, Transpose::no, inverse, -1.0, 1.0);
  linalg::multiply(factor_w, Transpose::no, rows, Transpose::no, w, -1.0, 1.0);
}

std::vector<std::size_t> second_order(const Moments& moments, const Matrix& w0, std::size_t keep,
                                      double damping) {
  const auto n = static_cast<std::size_t>(moments.gram.rows());
  Matrix w = ridge(moments, w0, damping);
  Matrix inverse = damped_inverse(moments.gram, damping);
  std::vector<std::size_t> alive(n), order;
  std::iota(alive.begin(), alive.end(), std::size_t{0});
  const std::size_t removals = n - keep;
  const std::size_t step = std::max<std::size_t>(1, removals / kSteps);
  while (order.size() < removals) {
    Vector scores = Vector::Zero(static_cast<Eigen::Index>(n));
    for (const std::size_t j : alive) {
      const auto i = static_cast<Eigen::Index>(j);
      scores[i] = w.col(i).squaredNorm() / std::max(inverse(i, i), 1e-300);
    }
    const std::vector<std::size_t> gone = cheapest(alive, scores, std::min(step, removals - order.size()));
    remove(gone, inverse, w);
    order.insert(order.end(), gone.begin(), gone.end());
    std::erase_if(alive, [&](std::size_t j) { return std::find(gone.begin(), gone.end(), j) != gone.end(); });
  }
  order.insert(order.end(), alive.begin(), alive.end());
  return order;
}

}  // namespace

std::vector<std::size_t> removal_order(const Moments& moments, const Matrix& w, std::size_t keep,
                                       ChannelChoice choice, double damping) {
  const auto n = static_cast<std::size_t>(moments.gram.rows());
  if (keep == 0 || keep > n || w.cols() != moments.gram.cols()) {
    fail({.op = "choose_channels",
          .what = "channels to keep",
          .expected = "1 to " + std::to_string(n) + ", of as many columns of w",
          .got = std::to_string(keep) + " of " + std::to_string(w.cols())});
  }
  if (choice == ChannelChoice::second_order) return second_order(moments, w, keep, damping);
  Vector scores = w.colwise().norm().transpose();
  if (choice == ChannelChoice::wanda) {
    scores.array() *= moments.gram.diagonal().array().max(0.0).sqrt();
  }
  std::vector<std::size_t> all(n);
  std::iota(all.begin(), all.end(), std::size_t{0});
  return cheapest(all, scores, n);
}

std::vector<std::size_t> choose_channels(const Moments& moments, const Matrix& w, std::size_t count,
                                         ChannelChoice choice, double damping) {
  const std::vector<std::size_t> order = removal_order(moments, w, count, choice, damping);
  std::vector<std::size_t> kept(order.end() - static_cast<std::ptrdiff_t>(count), order.end());
  std::sort(kept.begin(), kept.end());
  return kept;
}

}  // namespace modicum::retrofit
