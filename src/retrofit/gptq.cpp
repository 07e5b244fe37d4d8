// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include <modicum/base/error.hpp>
#include <modicum/ops/matmul.hpp>
#include <modicum/retrofit/gptq.hpp>
#include <modicum/retrofit/round.hpp>

#include "nearest.hpp"
#include "round_checks.hpp"

namespace modicum::retrofit {
namespace {

constexpr std::string_view kOp = "retrofit.gptq";
/// Columns whose errors go into later columns by one product of matrices.
constexpr std::size_t kBlock = 128;

/// Position k in the order of rounding ↦ column.
std::vector<std::size_t> order_of(const linalg::Matrix& gram, bool act_order) {
  std::vector<std::size_t> order(static_cast<std::size_t>(gram.cols()));
  std::iota(order.begin(), order.end(), std::size_t{0});
  if (!act_order) return order;
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    const auto i = static_cast<Eigen::Index>(a), j = static_cast<Eigen::Index>(b);
    return gram(i, i) > gram(j, j);
  });
  return order;
}

/// U of (I + U) D (I + U)ᵀ = G + λI with its columns in the order of rounding. It lies as the Cholesky factor
/// of that matrix with rows and columns reversed, as reversal takes upper triangles to lower ones.
class Feedback {
 public:
  Feedback(const linalg::Matrix& gram, const std::vector<std::size_t>& order, double damping)
      : size_(gram.cols()), factor_(size_, size_) {
    const double added = damping * gram.diagonal().mean();
    for (Eigen::Index l = 0; l < size_; ++l) {
      const double* const column = gram.col(static_cast<Eigen::Index>(order[index(l)])).data();
      for (Eigen::Index k = l; k < size_; ++k) factor_(k, l) = column[order[index(k)]];
      factor_(l, l) += added;
      // Nothing is carried from or to a column without inputs, whatever stands here.
      if (factor_(l, l) == 0) factor_(l, l) = 1;
    }
    if (linalg::cholesky(factor_)) return;
    fail({.op = kOp,
          .what = "gram with " + std::to_string(added) + " on its diagonal",
          .expected = "a positive definite matrix",
          .got = "one that is not",
          .todo = "raise the damping, or compute the Gram of more tokens in f64"});
  }

  /// U[k, l], k < l.
  float operator()(std::size_t k, std::size_t l) const {
    const Eigen::Index i = reversed(k), j = reversed(l);
    return static_cast<float>(factor_(i, j) / factor_(j, j));
  }

 private:
  std::size_t index(Eigen::Index i) const { return static_cast<std::size_t>(size_ - 1 - i); }
  Eigen::Index reversed(std::size_t k) const { return size_ - 1 - static_cast<Eigen::Index>(k); }

  Eigen::Index size_;
  linalg::Matrix factor_;
};

class Solver {
 public:
  Solver(std::span<const float> weights, std::size_t rows, std::size_t cols, const linalg::Matrix& gram,
         const RoundOptions& options, ThreadPool& pool)
      : weights_(weights),
        options_(options),
        pool_(pool),
        order_(order_of(gram, options.act_order)),
        feedback_(gram, order_, options.damping),
        out_{.rows = rows, .cols = cols, .bits = options.bits, .group = options.group},
        group_(cols / out_.groups()),
        scales_first_(options.act_order || group_ > kBlock),
        block_(scales_first_ ? kBlock : kBlock / group_ * group_),
        half_(static_cast<float>(1u << (options.bits - 1))),
        carried_(weights.size()),
        errors_(rows * block_) {
    out_.integers.resize(weights.size());
    out_.scales.resize(rows * out_.groups());
  }

  RoundedMatrix solve() && {
    pool_.run(out_.rows, [&](std::size_t r) { start_row(r); });
    for (std::size_t begin = 0; begin < out_.cols; begin += block_) {
      const std::size_t end = std::min(out_.cols, begin + block_);
      load_inner(begin, end);
      pool_.run(out_.rows, [&](std::size_t r) { round_block(r, begin, end); });
      carry(begin, end);
    }
    return std::move(out_);
  }

 private:
  void start_row(std::size_t r) {
    const std::size_t first = r * out_.cols;
    for (std::size_t k = 0; k < out_.cols; ++k) carried_[first + k] = weights_[first + order_[k]];
    if (!scales_first_) return;
    for (std::size_t begin = first; begin < first + out_.cols; begin += group_) {
      out_.scales[begin / group_] =
          round_group(weights_.subspan(begin, group_), options_.bits, options_.scale_dtype,
                      std::span(out_.integers).subspan(begin, group_));
    }
  }

  /// U within a block, row-major.
  void load_inner(std::size_t begin, std::size_t end) {
    const std::size_t width = end - begin;
    inner_.assign(width * width, 0.0f);
    for (std::size_t l = 0; l < width; ++l) {
      for (std::size_t k = 0; k < l; ++k) inner_[k * width + l] = feedback_(begin + k, begin + l);
    }
  }

  void round_block(std::size_t r, std::size_t begin, std::size_t end) {
    const std::size_t width = end - begin;
    const std::size_t first = r * out_.cols;
    float* const carried = carried_.data() + first + begin;
    for (std::size_t k = 0; k < width; ++k) {
      if (!scales_first_ && k % group_ == 0) find_scale(r, begin, k, width);
      const std::size_t at = first + order_[begin + k];
      const float scale = out_.scales[at / group_];
      out_.integers[at] = nearest_integer(carried[k], scale, half_);
      const float error = weights_[at] - static_cast<float>(out_.integers[at]) * scale;
      errors_[r * width + k] = error;
      const float* const row = inner_.data() + k * width;
      for (std::size_t l = k + 1; l < width; ++l) carried[l] += error * row[l];
    }
  }

  /// The scale of the group that begins at column begin + k. It is fitted to the weights that would make up
  /// for the error so far if they were not rounded: each is carried into the next as it is.
  void find_scale(std::size_t r, std::size_t begin, std::size_t k, std::size_t width) {
    const std::size_t at = r * out_.cols + begin + k;
    float wanted[kBlock];
    std::int8_t integers[kBlock];
    std::copy_n(carried_.begin() + static_cast<std::ptrdiff_t>(at), group_, wanted);
    for (std::size_t i = 0; i < group_; ++i) {
      const float error = weights_[at + i] - wanted[i];
      const float* const row = inner_.data() + (k + i) * width + k;
      for (std::size_t l = i + 1; l < group_; ++l) wanted[l] += error * row[l];
    }
    out_.scales[at / group_] =
        round_group({wanted, group_}, options_.bits, options_.scale_dtype, {integers, group_});
  }

  /// Adds errors · U to the columns after a block.
  void carry(std::size_t begin, std::size_t end) {
    const std::size_t width = end - begin;
    const std::size_t rest = out_.cols - end;
    if (rest == 0) return;
    outer_.resize(rest * width);
    pool_.run(rest, [&](std::size_t l) {
      for (std::size_t k = 0; k < width; ++k) outer_[l * width + k] = feedback_(begin + k, end + l);
    });
    const ops::Product product{
        .weight = {.data = outer_.data(), .dtype = DType::f32, .rows = rest, .cols = width},
        .y = carried_.data() + end,
        .y_stride = out_.cols,
        .add = true};
    ops::matmul(pool_, errors_.data(), out_.rows, width, {&product, 1}, scratch_);
  }

  std::span<const float> weights_;
  const RoundOptions& options_;
  ThreadPool& pool_;
  std::vector<std::size_t> order_;
  Feedback feedback_;
  RoundedMatrix out_;
  std::size_t group_;
  bool scales_first_;
  std::size_t block_;
  float half_;
  std::vector<float> carried_;  ///< [rows, cols] in the order of rounding: W_k + Σ_{j<k} (W_j − Ŵ_j) U_jk
  std::vector<float> errors_;   ///< [rows, block]: W − Ŵ
  std::vector<float> inner_, outer_;
  ops::MatmulScratch scratch_;
};

}  // namespace

RoundedMatrix round_gptq(std::span<const float> weights, std::size_t rows, std::size_t cols,
                         const linalg::Matrix& gram, const RoundOptions& options, ThreadPool& pool) {
  check_weights(kOp, weights, rows, cols);
  check_round_options(kOp, options, cols);
  check_gram(kOp, gram, cols);
  if (!std::isfinite(options.damping) || options.damping < 0) {
    fail({.op = kOp,
          .what = "damping",
          .expected = "a finite number, at least 0",
          .got = std::to_string(options.damping)});
  }
  RoundedMatrix out = Solver(weights, rows, cols, gram, options, pool).solve();
  std::vector<float> difference = dequantize(out);
  for (std::size_t i = 0; i < difference.size(); ++i) difference[i] = weights[i] - difference[i];
  out.error = output_energy(difference, rows, gram, pool);
  out.energy = output_energy(weights, rows, gram, pool);
  return out;
}

}  // namespace modicum::retrofit
