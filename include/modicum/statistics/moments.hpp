// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include <modicum/base/thread_pool.hpp>
#include <modicum/linalg/dense.hpp>
#include <modicum/ops/matmul.hpp>
#include <modicum/tensor/dtype.hpp>

namespace modicum {

/// What a pass over calibration text leaves behind: a commutative monoid up to rounding. Parts that are
/// merged in one fixed order give the same bits whoever computed them.
template <class S>
concept Statistics = requires(S sum, const S& part) {
  sum.merge(part);
  { part.rows() } -> std::convertible_to<std::size_t>;
};

/// Second moments as a fit needs them.
struct Moments {
  linalg::Matrix gram;    ///< [n, n] Σ x xᵀ
  linalg::Matrix cross;   ///< [m, n] Σ t xᵀ
  linalg::Vector energy;  ///< [m] Σ t²
};

/// Gathers second moments: of rows x [n], and of targets t [m] against them: Σ w x xᵀ, Σ w t xᵀ and Σ w t².
/// All that a least-squares fit t ≈ W x needs, and all that its error on these rows needs.
///
/// Rows are gathered in blocks of up to 4096; a block's products are summed in f32 by the kernels of the
/// engine, blocks in f64. With `bf16` (what a bf16 model's products round their inputs to) x is kept as bf16,
/// without loss where it is scaled by powers of two alone, and t as the sum of two bf16. Memory: (n² + m n)
/// doubles, and (n + 2 m) elements for each row of a block.
class SecondMoments {
 public:
  SecondMoments() = default;
  /// `targets` 0: the Gram matrix alone. `expected_rows` bounds the block.
  SecondMoments(std::size_t inputs, std::size_t targets, DType dtype, std::size_t expected_rows);

  /// Adds rows x [rows, inputs] with targets t [rows, targets] (null with none), each row times its factor
  /// (the root of its weight; empty: 1).
  void add(ThreadPool& pool, const float* x, const float* t, std::size_t rows,
           std::span<const float> factors = {});
  /// Sums what is still gathered. Call it after the last `add`, before reading or merging.
  void finish(ThreadPool& pool);
  void merge(const SecondMoments& part);

  std::size_t inputs() const noexcept { return inputs_; }
  std::size_t targets() const noexcept { return targets_; }
  std::size_t rows() const noexcept { return rows_; }
  const Moments& moments() const& noexcept { return sums_; }
  Moments moments() && { return std::move(sums_); }
  /// Bytes that an object of this shape holds.
  static std::size_t bytes(std::size_t inputs, std::size_t targets, DType dtype, std::size_t expected_rows);

 private:
  void flush(ThreadPool& pool);
  void flush_gram(ThreadPool& pool, const WeightView& block);
  void flush_cross(ThreadPool& pool, const WeightView& block, const std::vector<std::byte>& targets);

  std::size_t inputs_ = 0;
  std::size_t targets_ = 0;
  DType dtype_ = DType::f32;
  std::size_t capacity_ = 0;  ///< rows of a block
  std::size_t filled_ = 0;
  std::size_t rows_ = 0;
  std::vector<std::byte> x_;     ///< [inputs, capacity] of the dtype
  std::vector<std::byte> t_;     ///< [targets, capacity]
  std::vector<std::byte> rest_;  ///< what bf16 leaves of t
  Moments sums_;
  std::vector<float> panel_, products_;
  ops::MatmulScratch scratch_;
};
static_assert(Statistics<SecondMoments>);

/// Largest and mean magnitude of each channel of rows x [n].
class ChannelMagnitudes {
 public:
  explicit ChannelMagnitudes(std::size_t channels = 0) : largest_(channels), sums_(channels) {}
  void add(const float* x, std::size_t rows);
  void merge(const ChannelMagnitudes& part);
  std::size_t rows() const noexcept { return rows_; }
  std::span<const float> largest() const noexcept { return largest_; }
  std::vector<float> mean() const;

 private:
  std::size_t rows_ = 0;
  std::vector<float> largest_;
  std::vector<double> sums_;
};
static_assert(Statistics<ChannelMagnitudes>);

/// Factors [rows] that make a row's error count relative to `reference` [rows, width]: about 1 / rms, as a
/// power of two. What follows a residual stream is normalised (RMSNorm), so relative errors matter; without
/// this, the few tokens of massive activations (Sun et al. 2024, arXiv:2402.17762) would decide alone.
std::vector<float> relative_factors(const float* reference, std::size_t rows, std::size_t width);

}  // namespace modicum
