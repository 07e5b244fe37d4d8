// SPDX-License-Identifier: Apache-2.0
// Weights, and second moments of inputs that are correlated as those of a trained model: a few directions and
// a few channels carry most of the energy.
#pragma once

#include <cmath>
#include <cstddef>
#include <random>
#include <span>
#include <vector>

#include <modicum/linalg/dense.hpp>

inline std::vector<float> gaussian_weights(std::size_t count, unsigned seed, float deviation = 0.05f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

/// E[x xᵀ] over 4 · cols tokens of a mixture of cols / 4 directions and a little noise; every 37th channel is
/// twenty times as large.
inline modicum::linalg::Matrix correlated_gram(std::size_t cols, unsigned seed) {
  const auto n = static_cast<Eigen::Index>(cols);
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  const auto fill = [&](Eigen::Index rows, Eigen::Index columns) {
    return modicum::linalg::Matrix::NullaryExpr(rows, columns, [&] { return normal(random); }).eval();
  };
  modicum::linalg::Matrix inputs = fill(4 * n, n / 4) * fill(n / 4, n) + 0.5 * fill(4 * n, n);
  for (Eigen::Index c = 0; c < n; c += 37) inputs.col(c) *= 20;
  return inputs.transpose() * inputs / static_cast<double>(4 * n);
}

/// tr(W G Wᵀ), in f64.
inline double exact_energy(std::span<const float> weights, const modicum::linalg::Matrix& gram) {
  using Rows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const auto rows = static_cast<Eigen::Index>(weights.size()) / gram.cols();
  const modicum::linalg::Matrix w = Eigen::Map<const Rows>(weights.data(), rows, gram.cols()).cast<double>();
  return (w * gram).cwiseProduct(w).sum();
}
