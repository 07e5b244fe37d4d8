// SPDX-License-Identifier: Apache-2.0
#include "kv_merge_heads.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include <Eigen/Eigenvalues>

namespace modicum::retrofit {
namespace {

using Eigen::Index;
using linalg::Matrix;
using linalg::Transpose;
using linalg::Vector;
using ComplexMatrix = Eigen::MatrixXcd;
using ComplexVector = Eigen::VectorXcd;

/// Turning heads towards each other stops when a sweep gains less than this share, or after so many.
constexpr double kSweepGain = 1e-9;
constexpr int kSweeps = 60;

Index index(std::size_t i) {
  return static_cast<Index>(i);
}

/// Eigenvalues below this share of the largest are zero but for rounding.
constexpr double kRankTolerance = 1e-13;

double energy_of(const ComplexVector& mix, const ComplexMatrix& gram) {
  return mix.dot(gram * mix).real();
}

/// An eigenvector is known up to a phase: the first of its largest elements becomes positive. (Which elements
/// are largest is decided with room for rounding.)
template <class VectorType>
void fix_phase(VectorType&& v) {
  const double largest = v.cwiseAbs().maxCoeff();
  for (Index i = 0; i < v.size(); ++i) {
    const double magnitude = std::abs(v[i]);
    if (magnitude <= 0.999 * largest) continue;
    v /= v[i] / magnitude;
    return;
  }
}

KeyMerge mean_keys(Index heads) {
  return {ComplexVector::Constant(heads, 1.0 / static_cast<double>(heads)), ComplexVector::Ones(heads)};
}

KeyMerge principal_keys(const ComplexMatrix& gram, const Vector& query_energy) {
  const Vector a = query_energy.cwiseSqrt();
  const Eigen::SelfAdjointEigenSolver<ComplexMatrix> solver(a.asDiagonal() * gram * a.asDiagonal());
  ComplexVector u = solver.eigenvectors().col(gram.cols() - 1);
  fix_phase(u);
  ComplexVector mix = u.cwiseProduct(a);
  const double energy = energy_of(mix, gram);
  if (!(energy > 0.0)) return mean_keys(gram.rows());
  mix *= std::sqrt(gram.diagonal().real().mean() / energy);
  // The regression of κ on κ̄, which is u_h / a_h but serves heads without queries as well.
  return {mix, gram * mix / energy_of(mix, gram)};
}

/// Generalised Procrustes by unit phases: each head is turned towards the sum of the others.
KeyMerge turned_keys(const ComplexMatrix& gram) {
  const Index n = gram.rows();
  ComplexVector turn = ComplexVector::Zero(n);  // those before it, in the first sweep
  turn[0] = 1.0;
  double before = 0.0;
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    double agreement = 0.0;
    for (Index h = sweep == 0 ? 1 : 0; h < n; ++h) {
      turn[h] = 0.0;
      const std::complex<double> with_others = (gram.row(h) * turn.conjugate()).value();
      const double magnitude = std::abs(with_others);
      turn[h] = magnitude > 0.0 ? std::conj(with_others) / magnitude : 1.0;
      agreement += magnitude;
    }
    if (sweep > 0 && agreement <= before * (1.0 + kSweepGain)) break;
    before = agreement;
  }
  return {turn.conjugate() / static_cast<double>(n), turn.conjugate()};
}

ValueMerge mean_values(Index heads, Index d) {
  ValueMerge merge{Matrix(d, heads * d), Matrix(heads * d, d)};
  for (Index h = 0; h < heads; ++h) {
    merge.mix.middleCols(h * d, d) = Matrix::Identity(d, d) / static_cast<double>(heads);
    merge.spread.middleRows(h * d, d).setIdentity();
  }
  return merge;
}

/// Generalised Procrustes by orthogonal matrices R_h: each head is turned towards the sum of the others.
ValueMerge turned_values(const Matrix& gram, Index d) {
  const Index n = gram.rows() / d;
  ValueMerge merge = mean_values(n, d);
  Matrix& spread = merge.spread;  // R_hᵀ, one below the other
  spread.bottomRows((n - 1) * d).setZero();
  double before = 0.0;
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    double agreement = 0.0;
    for (Index h = sweep == 0 ? 1 : 0; h < n; ++h) {
      spread.middleRows(h * d, d).setZero();
      Matrix with_others;
      linalg::multiply(gram.middleRows(h * d, d), Transpose::no, spread, Transpose::no, with_others);
      const linalg::SingularValues svd = linalg::svd(with_others);
      spread.middleRows(h * d, d) = svd.u * svd.vt;
      agreement += svd.values.sum();
    }
    if (sweep > 0 && agreement <= before * (1.0 + kSweepGain)) break;
    before = agreement;
  }
  merge.mix = spread.transpose() / static_cast<double>(n);
  return merge;
}

/// P^½ and its pseudo-inverse.
std::pair<Matrix, Matrix> roots(const Matrix& p) {
  const linalg::Eigensystem e = linalg::eigh(p);
  const double least = kRankTolerance * std::max(0.0, e.values[e.values.size() - 1]);
  const Vector root = (e.values.array() > least).select(e.values.cwiseMax(0.0).cwiseSqrt(), 0.0);
  const Vector inverse = (root.array() > 0.0).select(root.cwiseInverse(), 0.0);
  return {e.vectors * root.asDiagonal() * e.vectors.transpose(),
          e.vectors * inverse.asDiagonal() * e.vectors.transpose()};
}

}  // namespace

HeadMerger::HeadMerger(const AttentionWeights& weights, const KvStatistics& statistics, KvMergeMethod method)
    : method_(method), d_(index(weights.shape.head_dim)), value_gram_(statistics.value_gram()) {
  const HeadShape& shape = weights.shape;
  const auto queries = index(shape.queries_per_kv());
  for (std::size_t f = 0; f < shape.head_dim / 2; ++f) key_grams_.push_back(statistics.key_gram(f));
  const Matrix by_query = statistics.query_energy();
  query_energy_ = Matrix(d_ / 2, index(shape.kv_heads));
  for (Index h = 0; h < query_energy_.cols(); ++h) {
    query_energy_.col(h) = by_query.middleCols(h * queries, queries).rowwise().sum();
    const Matrix o = weights.o.middleCols(h * queries * d_, queries * d_);
    Matrix p = Matrix::Zero(d_, d_);
    for (Index q = 0; q < queries; ++q) {
      const Matrix block = o.middleCols(q * d_, d_);
      linalg::multiply(block, Transpose::yes, block, Transpose::no, p, 1.0, 1.0);
    }
    value_energy_ += p.cwiseProduct(value_gram_.block(h * d_, h * d_, d_, d_)).sum();
    for (Index f = 0; f < d_ / 2; ++f)
      score_energy_ += query_energy_(f, h) * key_grams_[static_cast<std::size_t>(f)](h, h).real();
    if (method == KvMergeMethod::complex_pca) {
      auto [root, inverse] = roots(p);
      output_root_.push_back(std::move(root));
      output_inverse_.push_back(std::move(inverse));
    }
    output_.push_back(std::move(p));
  }
}

GroupMerge HeadMerger::merge(const Heads& group) const {
  const Index n = index(group.size());
  GroupMerge merged;
  for (Index f = 0; f < d_ / 2; ++f) {
    ComplexMatrix gram(n, n);
    Vector energy(n);
    for (Index i = 0; i < n; ++i) {
      const Index head = index(group[static_cast<std::size_t>(i)]);
      energy[i] = query_energy_(f, head);
      for (Index j = 0; j < n; ++j) {
        gram(i, j) = key_grams_[static_cast<std::size_t>(f)](head, index(group[static_cast<std::size_t>(j)]));
      }
    }
    merged.keys.push_back(merge_keys(gram, energy));
    const auto& [mix, spread] = merged.keys.back();
    const ComplexVector with_mix = gram * mix;
    const double mixed = energy_of(mix, gram);
    for (Index i = 0; i < n; ++i) {
      const double cross = (std::conj(spread[i]) * with_mix[i]).real();
      const double lost = gram(i, i).real() - 2.0 * cross + std::norm(spread[i]) * mixed;
      merged.score_loss += energy[i] * std::max(0.0, lost);
    }
  }
  const Matrix gram = gram_of(group);
  merged.values = merge_values(group, gram);
  merged.value_loss = value_loss(group, gram, merged.values);
  return merged;
}

KeyMerge HeadMerger::merge_keys(const ComplexMatrix& gram, const Vector& energy) const {
  // One head stays as it is, to the last bit.
  if (gram.rows() == 1 || method_ == KvMergeMethod::mean) return mean_keys(gram.rows());
  if (method_ == KvMergeMethod::first) {
    return {ComplexVector::Unit(gram.rows(), 0), ComplexVector::Ones(gram.rows())};
  }
  return method_ == KvMergeMethod::procrustes ? turned_keys(gram) : principal_keys(gram, energy);
}

ValueMerge HeadMerger::merge_values(const Heads& group, const Matrix& gram) const {
  const Index n = index(group.size());
  if (n == 1 || method_ == KvMergeMethod::mean) return mean_values(n, d_);
  if (method_ == KvMergeMethod::first) {
    ValueMerge merge = mean_values(n, d_);
    merge.mix = Matrix::Identity(d_, n * d_);
    return merge;
  }
  return method_ == KvMergeMethod::procrustes ? turned_values(gram, d_) : principal_values(group, gram);
}

ValueMerge HeadMerger::principal_values(const Heads& group, const Matrix& gram) const {
  const Index n = index(group.size()), width = n * d_;
  Matrix weighted(width, width);
  for (Index i = 0; i < n; ++i) {
    for (Index j = 0; j < n; ++j) {
      weighted.block(i * d_, j * d_, d_, d_) = output_root_[group[static_cast<std::size_t>(i)]] *
                                               gram.block(i * d_, j * d_, d_, d_) *
                                               output_root_[group[static_cast<std::size_t>(j)]];
    }
  }
  const linalg::Eigensystem e = linalg::eigh(std::move(weighted));
  // By falling energy, so that neighbours, which caches of few bits give one scale, are alike.
  Matrix top = e.vectors.rightCols(d_).rowwise().reverse();
  for (Index c = 0; c < d_; ++c) fix_phase(top.col(c));
  ValueMerge merge{Matrix(d_, width), Matrix(width, d_)};
  for (Index i = 0; i < n; ++i) {
    const std::size_t head = group[static_cast<std::size_t>(i)];
    merge.mix.middleCols(i * d_, d_) = top.middleRows(i * d_, d_).transpose() * output_root_[head];
    merge.spread.middleRows(i * d_, d_) = output_inverse_[head] * top.middleRows(i * d_, d_);
  }
  const double energy = (merge.mix * gram).cwiseProduct(merge.mix).sum();
  if (!(energy > 0.0)) return mean_values(n, d_);
  const double scale = std::sqrt(gram.trace() / static_cast<double>(n) / energy);
  merge.mix *= scale;
  merge.spread /= scale;
  return merge;
}

double HeadMerger::value_loss(const Heads& group, const Matrix& gram, const ValueMerge& merge) const {
  const Index width = gram.rows();
  Matrix rest = Matrix::Identity(width, width), half, lost;  // I − spread mix
  linalg::multiply(merge.spread, Transpose::no, merge.mix, Transpose::no, rest, -1.0, 1.0);
  linalg::multiply(rest, Transpose::no, gram, Transpose::no, half);
  linalg::multiply(half, Transpose::no, rest, Transpose::yes, lost);
  double sum = 0.0;
  for (std::size_t i = 0; i < group.size(); ++i) {
    const Index at = index(i) * d_;
    sum += output_[group[i]].cwiseProduct(lost.block(at, at, d_, d_)).sum();
  }
  return std::max(0.0, sum);
}

Matrix HeadMerger::gram_of(const Heads& group) const {
  const Index n = index(group.size());
  Matrix gram(n * d_, n * d_);
  for (Index i = 0; i < n; ++i) {
    for (Index j = 0; j < n; ++j) {
      gram.block(i * d_, j * d_, d_, d_) =
          value_gram_.block(index(group[static_cast<std::size_t>(i)]) * d_,
                            index(group[static_cast<std::size_t>(j)]) * d_, d_, d_);
    }
  }
  return gram;
}

}  // namespace modicum::retrofit
