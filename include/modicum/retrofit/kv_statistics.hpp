// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <complex>
#include <cstddef>
#include <vector>

#include <modicum/base/thread_pool.hpp>
#include <modicum/linalg/dense.hpp>

namespace modicum::retrofit {

/// How many heads attention has, and how wide they are.
struct HeadShape {
  std::size_t heads = 0;     ///< of queries
  std::size_t kv_heads = 0;  ///< of keys and values; divides `heads`
  std::size_t head_dim = 0;  ///< even

  std::size_t queries_per_kv() const noexcept { return heads / kv_heads; }
  bool operator==(const HeadShape&) const = default;
};

/// Second moments of one layer's queries, keys and values, from which its KV heads are merged.
///
/// RoPE turns dimensions f and f + d/2 of a head together, by an angle of frequency f (the half-split layout
/// of Hugging Face checkpoints). So a key is d/2 complex numbers κ_f = k_f + i k_{f+d/2}, a query ρ_f alike,
/// and their score is Σ_f Re(ρ̄_f κ_f e^{i(n−m)θ_f}) / √d: statistics before RoPE serve every position.
///
/// A monoid: statistics of two texts merge into those of both. Sums are f64; within 512 rows they are formed
/// in f32, in an order that does not depend on the number of threads.
class KvStatistics {
 public:
  /// Throws `InvalidArgument` for no heads, heads that kv_heads does not divide, and an odd head_dim.
  explicit KvStatistics(const HeadShape& shape);

  /// Adds `rows` tokens: q [rows, heads · d], k and v [rows, kv_heads · d], row-major f32, with their biases
  /// and before RoPE.
  void update(ThreadPool& pool, const float* q, const float* k, const float* v, std::size_t rows);

  /// Throws `InvalidArgument` for statistics of another shape.
  void merge(const KvStatistics& other);

  const HeadShape& shape() const noexcept { return shape_; }
  std::size_t count() const noexcept { return count_; }  ///< tokens

  // Means over all tokens; of none, zeros.

  /// E[κ_f κ_fᴴ], [kv_heads, kv_heads].
  Eigen::MatrixXcd key_gram(std::size_t frequency) const;
  /// E|ρ_f|² of every query head, [d/2, heads].
  linalg::Matrix query_energy() const;
  /// E[v vᵀ] of all heads' values, [kv_heads · d, kv_heads · d].
  linalg::Matrix value_gram() const;

 private:
  void add_keys(ThreadPool& pool, const float* k, std::size_t rows);
  void add_queries(ThreadPool& pool, const float* q, std::size_t rows);
  void add_values(ThreadPool& pool, const float* v, std::size_t rows);

  HeadShape shape_;
  std::size_t count_ = 0;
  std::vector<Eigen::MatrixXcd> keys_;
  linalg::Matrix queries_;
  linalg::Matrix values_;  ///< the upper triangle
};

}  // namespace modicum::retrofit
