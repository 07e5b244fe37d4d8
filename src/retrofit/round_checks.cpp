// SPDX-License-Identifier: Apache-2.0
#include "round_checks.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include <modicum/base/error.hpp>
#include <modicum/tensor/matrix.hpp>

namespace modicum::retrofit {
namespace {

constexpr double kSymmetry = 1e-6;
/// Rows and columns that are compared at a time, so that the transposed side is read from cache.
constexpr Eigen::Index kTile = 64;

std::string name_of_entry(Eigen::Index i, Eigen::Index j) {
  return "gram at [" + std::to_string(i) + ", " + std::to_string(j) + "]";
}

void check_tile(std::string_view op, const linalg::Matrix& gram, Eigen::Index i0, Eigen::Index j0,
                double tolerance) {
  for (Eigen::Index j = j0; j < std::min(j0 + kTile, gram.cols()); ++j) {
    for (Eigen::Index i = i0; i < std::min(i0 + kTile, j + 1); ++i) {
      if (std::abs(gram(i, j) - gram(j, i)) <= tolerance) continue;
      const bool finite = std::isfinite(gram(i, j)) && std::isfinite(gram(j, i));
      fail({.op = op,
            .what = name_of_entry(i, j),
            .expected = finite ? "a symmetric matrix" : "finite values",
            .got = std::to_string(gram(i, j)) + " and " + std::to_string(gram(j, i)) + " across"});
    }
  }
}

}  // namespace

void check_round_options(std::string_view op, const RoundOptions& options, std::size_t cols) {
  if (options.bits < 2 || options.bits > 8) {
    fail({.op = op, .what = "bits", .expected = "2 to 8", .got = std::to_string(options.bits)});
  }
  const std::size_t group = options.group == 0 ? cols : options.group;
  if (cols == 0 || group % kQuantGroup != 0 || cols % group != 0) {
    fail({.op = op,
          .what = "group of " + std::to_string(options.group) + " with " + std::to_string(cols) + " columns",
          .expected = "a multiple of 32 that divides the columns, or whole rows of a multiple of 32",
          .got = "one that is not"});
  }
  if (!is_float(options.scale_dtype)) {
    fail({.op = op,
          .what = "dtype of scales",
          .expected = "f32, bf16 or f16",
          .got = std::string(name_of(options.scale_dtype))});
  }
}

void check_weights(std::string_view op, std::span<const float> weights, std::size_t rows, std::size_t cols) {
  if (rows == 0 || cols == 0 || weights.size() / rows != cols || weights.size() % rows != 0) {
    fail({.op = op,
          .what = "weights of " + std::to_string(rows) + " × " + std::to_string(cols),
          .expected = "at least one row and column, and as many values",
          .got = std::to_string(weights.size()) + " values"});
  }
  const auto bad = std::find_if_not(weights.begin(), weights.end(), [](float w) { return std::isfinite(w); });
  if (bad == weights.end()) return;
  const auto index = static_cast<std::size_t>(bad - weights.begin());
  fail({.op = op,
        .what = "weights at [" + std::to_string(index / cols) + ", " + std::to_string(index % cols) + "]",
        .expected = "a finite weight",
        .got = std::isnan(*bad) ? "NaN" : "infinity"});
}

void check_gram(std::string_view op, const linalg::Matrix& gram, std::size_t cols) {
  const auto size = static_cast<Eigen::Index>(cols);
  if (gram.rows() != size || gram.cols() != size) {
    fail({.op = op,
          .what = "gram",
          .expected =
              std::to_string(cols) + " × " + std::to_string(cols) + ", as many as the input has columns",
          .got = std::to_string(gram.rows()) + " × " + std::to_string(gram.cols())});
  }
  for (Eigen::Index i = 0; i < size; ++i) {
    if (std::isfinite(gram(i, i)) && gram(i, i) >= 0) continue;
    fail({.op = op,
          .what = name_of_entry(i, i),
          .expected = "a finite mean square, at least 0",
          .got = std::to_string(gram(i, i))});
  }
  const double tolerance = kSymmetry * gram.diagonal().maxCoeff();
  for (Eigen::Index j = 0; j < size; j += kTile) {
    for (Eigen::Index i = 0; i <= j; i += kTile) check_tile(op, gram, i, j, tolerance);
  }
}

}  // namespace modicum::retrofit
