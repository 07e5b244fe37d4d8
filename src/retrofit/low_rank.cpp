// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <string>

#include <modicum/base/error.hpp>
#include <modicum/retrofit/low_rank.hpp>

namespace modicum::retrofit {
namespace {

using Eigen::Index;
using linalg::Matrix;
using linalg::Transpose;
using linalg::Vector;

/// Squared singular values below this share of the largest are zero but for rounding.
constexpr double kRankTolerance = 1e-13;

void check(const Matrix& weight, const Matrix& gram, std::size_t rank, double damping) {
  const auto refuse = [](const char* what, std::string expected, std::string got) {
    fail({.op = "retrofit.low_rank", .what = what, .expected = std::move(expected), .got = std::move(got)});
  };
  if (gram.rows() != weight.cols() || gram.cols() != weight.cols()) {
    refuse("gram", std::to_string(weight.cols()) + " × " + std::to_string(weight.cols()),
           std::to_string(gram.rows()) + " × " + std::to_string(gram.cols()));
  }
  const Index most = std::min(weight.rows(), weight.cols());
  if (rank == 0 || rank > static_cast<std::size_t>(most)) {
    refuse("rank", "1 to " + std::to_string(most), std::to_string(rank));
  }
  if (!(damping >= 0.0) || !std::isfinite(damping)) {
    refuse("damping", "a number from 0", std::to_string(damping));
  }
  if (!weight.allFinite() || !gram.allFinite()) refuse("weight and gram", "finite", "NaN or infinity");
}

/// The eigenvectors of the `rank` largest values, largest first, each with a positive largest element.
Matrix top_vectors(const linalg::Eigensystem& e, Index rank) {
  Matrix top = e.vectors.rightCols(rank).rowwise().reverse();
  for (Index c = 0; c < rank; ++c) {
    Index largest = 0;
    top.col(c).cwiseAbs().maxCoeff(&largest);
    if (top(largest, c) < 0.0) top.col(c) = -top.col(c);
  }
  return top;
}

/// Left singular vectors of W G^½ from the eigenvectors of W G Wᵀ.
Matrix left_of_outputs(const Matrix& weight, const Matrix& weighted, Index rank) {
  Matrix energy;
  linalg::multiply(weighted, Transpose::no, weight, Transpose::yes, energy);
  return top_vectors(linalg::eigh(std::move(energy)), rank);
}

/// The same by way of the smaller (G^½)ᵀ Wᵀ W G^½, of the right singular vectors.
Matrix left_of_inputs(const Matrix& weight, const Matrix& gram, Index rank) {
  const linalg::Eigensystem e = linalg::eigh(gram);
  const Matrix root = e.vectors * e.values.cwiseMax(0.0).cwiseSqrt().asDiagonal();
  Matrix b, energy, u;
  linalg::multiply(weight, Transpose::no, root, Transpose::no, b);
  linalg::multiply(b, Transpose::yes, b, Transpose::no, energy);
  const linalg::Eigensystem right = linalg::eigh(std::move(energy));
  const Vector values = right.values.tail(rank).reverse();
  linalg::multiply(b, Transpose::no, top_vectors(right, rank), Transpose::no, u);
  for (Index c = 0; c < rank; ++c) {
    if (values[c] > kRankTolerance * values[0]) {
      u.col(c) /= u.col(c).norm();
    } else {
      u.col(c).setZero();
    }
  }
  return u;
}

}  // namespace

LowRank low_rank(const Matrix& weight, const Matrix& gram, std::size_t rank, double damping) {
  check(weight, gram, rank, damping);
  const Index inputs = weight.cols(), r = static_cast<Index>(rank);
  Matrix damped = gram;
  damped.diagonal().array() += damping * gram.trace() / static_cast<double>(inputs);
  Matrix weighted;
  linalg::multiply(weight, Transpose::no, damped, Transpose::no, weighted);
  LowRank out;
  out.u = weight.rows() <= inputs ? left_of_outputs(weight, weighted, r) : left_of_inputs(weight, damped, r);
  linalg::multiply(out.u, Transpose::yes, weight, Transpose::no, out.v);
  Matrix rest = weight;
  linalg::multiply(out.u, Transpose::no, out.v, Transpose::no, rest, -1.0, 1.0);
  const auto energy = [&](const Matrix& w) {
    linalg::multiply(w, Transpose::no, gram, Transpose::no, weighted);
    return std::max(0.0, w.cwiseProduct(weighted).sum());
  };
  const double all = energy(weight);
  out.loss = all > 0.0 ? energy(rest) / all : 0.0;
  return out;
}

}  // namespace modicum::retrofit
