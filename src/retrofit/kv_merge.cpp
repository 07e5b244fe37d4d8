// SPDX-License-Identifier: Apache-2.0
#include <string>

#include <modicum/base/error.hpp>
#include <modicum/retrofit/kv_merge.hpp>

#include "kv_merge_heads.hpp"

namespace modicum::retrofit {
namespace {

using Eigen::Index;
using linalg::Matrix;
using linalg::Vector;

Index index(std::size_t i) {
  return static_cast<Index>(i);
}

std::string name_of(Index rows, Index cols) {
  return std::to_string(rows) + " × " + std::to_string(cols);
}

void check_shape(const char* name, const Matrix& m, Index rows, Index cols) {
  if (m.rows() != rows || m.cols() != cols) {
    fail({.op = "retrofit.merge_kv",
          .what = name,
          .expected = name_of(rows, cols),
          .got = name_of(m.rows(), m.cols())});
  }
  if (!m.allFinite()) {
    fail({.op = "retrofit.merge_kv", .what = name, .expected = "finite numbers", .got = "NaN or infinity"});
  }
}

void check_bias(const char* name, const Vector& bias, Index rows) {
  if (bias.size() > 0) check_shape(name, bias, rows, 1);
}

void check_weights(const AttentionWeights& w) {
  const Index queries = index(w.shape.heads * w.shape.head_dim);
  const Index keys = index(w.shape.kv_heads * w.shape.head_dim);
  check_shape("q", w.q, queries, w.q.cols());
  check_shape("k", w.k, keys, w.q.cols());
  check_shape("v", w.v, keys, w.q.cols());
  check_shape("o", w.o, w.o.rows(), queries);
  check_bias("q_bias", w.q_bias, queries);
  check_bias("k_bias", w.k_bias, keys);
  check_bias("v_bias", w.v_bias, keys);
}

void check_statistics(const KvStatistics& statistics, const HeadShape& shape) {
  if (!(statistics.shape() == shape)) {
    fail({.op = "retrofit.merge_kv",
          .what = "statistics",
          .expected = "those of the layer's heads",
          .got = "those of other heads"});
  }
  if (statistics.count() == 0) {
    fail({.op = "retrofit.merge_kv",
          .what = "statistics",
          .expected = "those of some tokens",
          .got = "none",
          .todo = "update them with the layer's queries, keys and values"});
  }
  bool finite = statistics.query_energy().allFinite() && statistics.value_gram().allFinite();
  for (std::size_t f = 0; f < shape.head_dim / 2; ++f) finite &= statistics.key_gram(f).allFinite();
  if (!finite) {
    fail({.op = "retrofit.merge_kv",
          .what = "statistics",
          .expected = "finite numbers",
          .got = "NaN or infinity"});
  }
}

void check_heads(const AttentionWeights& weights, std::size_t kv_heads) {
  const std::size_t present = weights.shape.kv_heads;
  if (kv_heads == 0 || kv_heads > present) {
    fail({.op = "retrofit.merge_kv",
          .what = "kv_heads",
          .expected = "1 to " + std::to_string(present),
          .got = std::to_string(kv_heads)});
  }
  if (present % kv_heads != 0) {
    fail<Unsupported>({.op = "retrofit.merge_kv",
                       .what = "kv_heads",
                       .expected = "a divisor of " + std::to_string(present) +
                                   ", as all KV heads serve equally many query heads",
                       .got = std::to_string(kv_heads)});
  }
  if (weights.qk_norm) {
    fail<Unsupported>({.op = "retrofit.merge_kv",
                       .what = "QK-norm",
                       .expected = "keys that are linear in the layer's input, as mixes of heads are",
                       .got = "keys that are normalised by head"});
  }
}

std::vector<Heads> choose_groups(const HeadMerger& merger, std::size_t heads, const KvMergeOptions& options) {
  const std::size_t size = heads / options.kv_heads;
  if (options.grouping == KvGrouping::consecutive || size == 1 || size == heads) {
    return consecutive_groups(heads, size);
  }
  const auto relative = [](double lost, double all) { return all > 0.0 ? lost / all : 0.0; };
  Matrix pairs = Matrix::Zero(index(heads), index(heads));
  for (std::size_t a = 0; a < heads; ++a) {
    for (std::size_t b = a + 1; b < heads; ++b) {
      const GroupMerge merge = merger.merge({a, b});
      pairs(index(a), index(b)) = pairs(index(b), index(a)) =
          relative(merge.score_loss, merger.score_energy()) +
          relative(merge.value_loss, merger.value_energy());
    }
  }
  return group_heads(pairs, size);
}

/// Adds, to one head's rows, another's with frequency f multiplied by the conjugate of by[f].
template <class Target, class Source>
void add_turned(Target&& target, const Source& source, const Eigen::VectorXcd& by) {
  const Index half = by.size();
  const Vector cos = by.real(), sin = by.imag();
  const auto real = source.topRows(half), imaginary = source.bottomRows(half);
  target.topRows(half) += cos.asDiagonal() * real + sin.asDiagonal() * imaginary;
  target.bottomRows(half) += cos.asDiagonal() * imaginary - sin.asDiagonal() * real;
}

/// Writes the rows of new heads (of weights, or of a bias as a single column) from those of the old.
class Mixer {
 public:
  Mixer(std::size_t head_dim, const std::vector<Heads>& groups, const std::vector<GroupMerge>& merges)
      : d_(index(head_dim)), groups_(groups), merges_(merges) {}

  Matrix keys(const Matrix& rows) const {
    Matrix mixed = Matrix::Zero(index(groups_.size()) * d_, rows.cols());
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      for (std::size_t i = 0; i < groups_[g].size(); ++i) {
        add_turned(mixed.middleRows(index(g) * d_, d_), rows.middleRows(index(groups_[g][i]) * d_, d_),
                   by_frequency(g, i, &KeyMerge::mix));
      }
    }
    return mixed;
  }

  Matrix queries(const Matrix& rows, std::size_t per_kv) const {
    Matrix turned = Matrix::Zero(rows.rows(), rows.cols());
    Index to = 0;
    each_query(per_kv, [&](std::size_t g, std::size_t i, Index from) {
      add_turned(turned.middleRows(to, d_), rows.middleRows(from * d_, d_),
                 by_frequency(g, i, &KeyMerge::spread));
      to += d_;
    });
    return turned;
  }

  Matrix values(const Matrix& rows) const {
    Matrix mixed = Matrix::Zero(index(groups_.size()) * d_, rows.cols());
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      for (std::size_t i = 0; i < groups_[g].size(); ++i) {
        const Matrix mix = merges_[g].values.mix.middleCols(index(i) * d_, d_);
        const Matrix source = rows.middleRows(index(groups_[g][i]) * d_, d_);
        mixed.middleRows(index(g) * d_, d_) += product(mix, source);
      }
    }
    return mixed;
  }

  /// Columns of W_O, for the new values.
  Matrix outputs(const Matrix& columns, std::size_t per_kv) const {
    Matrix turned(columns.rows(), columns.cols());
    Index to = 0;
    each_query(per_kv, [&](std::size_t g, std::size_t i, Index from) {
      const Matrix spread = merges_[g].values.spread.middleRows(index(i) * d_, d_);
      turned.middleCols(to, d_) = product(columns.middleCols(from * d_, d_), spread);
      to += d_;
    });
    return turned;
  }

  std::vector<std::size_t> query_heads(std::size_t per_kv) const {
    std::vector<std::size_t> heads;
    each_query(per_kv, [&](std::size_t, std::size_t, Index from) {
      heads.push_back(static_cast<std::size_t>(from));
    });
    return heads;
  }

 private:
  static Matrix product(const Matrix& a, const Matrix& b) {
    Matrix c;
    linalg::multiply(a, linalg::Transpose::no, b, linalg::Transpose::no, c);
    return c;
  }

  /// The i-th head's factors in a group.
  Eigen::VectorXcd by_frequency(std::size_t g, std::size_t i, Eigen::VectorXcd KeyMerge::* factor) const {
    Eigen::VectorXcd factors(d_ / 2);
    for (Index f = 0; f < d_ / 2; ++f) {
      factors[f] = (merges_[g].keys[static_cast<std::size_t>(f)].*factor)[index(i)];
    }
    return factors;
  }

  /// Calls use(group, place in the group, old query head) in the new order of query heads.
  template <class Use>
  void each_query(std::size_t per_kv, const Use& use) const {
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      for (std::size_t i = 0; i < groups_[g].size(); ++i) {
        for (std::size_t q = 0; q < per_kv; ++q) use(g, i, index(groups_[g][i] * per_kv + q));
      }
    }
  }

  Index d_;
  const std::vector<Heads>& groups_;
  const std::vector<GroupMerge>& merges_;
};

AttentionWeights mixed(const AttentionWeights& w, const Mixer& mixer, std::size_t kv_heads) {
  const std::size_t per_kv = w.shape.queries_per_kv();
  AttentionWeights out;
  out.shape = {.heads = w.shape.heads, .kv_heads = kv_heads, .head_dim = w.shape.head_dim};
  out.q = mixer.queries(w.q, per_kv);
  out.k = mixer.keys(w.k);
  out.v = mixer.values(w.v);
  out.o = mixer.outputs(w.o, per_kv);
  if (w.q_bias.size() > 0) out.q_bias = mixer.queries(w.q_bias, per_kv);
  if (w.k_bias.size() > 0) out.k_bias = mixer.keys(w.k_bias);
  if (w.v_bias.size() > 0) out.v_bias = mixer.values(w.v_bias);
  return out;
}

}  // namespace

KvMerge merge_kv(const AttentionWeights& weights, const KvStatistics& statistics,
                 const KvMergeOptions& options) {
  check_statistics(statistics, weights.shape);
  check_weights(weights);
  check_heads(weights, options.kv_heads);
  const HeadMerger merger(weights, statistics, options.method);
  KvMerge result;
  result.groups = choose_groups(merger, weights.shape.kv_heads, options);
  std::vector<GroupMerge> merges;
  for (const Heads& group : result.groups) {
    merges.push_back(merger.merge(group));
    result.score_error += merges.back().score_loss;
    result.value_error += merges.back().value_loss;
  }
  if (merger.score_energy() > 0.0) result.score_error /= merger.score_energy();
  if (merger.value_energy() > 0.0) result.value_error /= merger.value_energy();
  const Mixer mixer(weights.shape.head_dim, result.groups, merges);
  result.query_heads = mixer.query_heads(weights.shape.queries_per_kv());
  result.weights = mixed(weights, mixer, options.kv_heads);
  return result;
}

}  // namespace modicum::retrofit
