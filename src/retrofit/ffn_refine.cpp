// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include <modicum/base/error.hpp>
#include <modicum/ops/elementwise.hpp>
#include <modicum/retrofit/ffn_refine.hpp>
#include <modicum/retrofit/ridge.hpp>
#include <modicum/statistics/moments.hpp>

#include "conjugate_gradient.hpp"
#include "ffn_linear.hpp"

namespace modicum::retrofit {
namespace {

constexpr std::string_view kOp = "retrofit.refine_ffn";
/// Of a factor of the preconditioner, times its mean: what hardly varies is left as it is.
constexpr double kPreconditionerDamping = 1e-2;
/// A step that lowers the error on held-out rows by less than this share is the last one of its fit.
constexpr double kWorthwhile = 2e-3;
/// From the strongest: a weaker one is tried while that helps.
constexpr double kDampings[] = {1e-2, 1e-3, 1e-4, 1e-5};

/// An approximate inverse of H = Σ w² x xᵀ ⊗ (f W_dᵀ W_d f): channels for themselves, each with the same
/// moments of x (K-FAC, Martens and Grosse 2015).
class Preconditioner {
 public:
  Preconditioner(ThreadPool& pool, const linalg::Matrix& gram) : pool_(pool) {
    const Eigen::Index n = gram.rows();
    linalg::Matrix inverse = gram;
    const double mean = std::max(gram.trace() / static_cast<double>(n), 1e-30);
    inverse.diagonal().array() += kPreconditionerDamping * mean;
    // Rounding may leave what f32 sums gave indefinite: then channels alone are scaled.
    if (!linalg::cholesky(inverse)) {
      inverse.setIdentity(n, n);
    } else {
      linalg::invert(inverse);
      inverse *= mean;
    }
    inverse_.resize(static_cast<std::size_t>(n * n));
    std::copy_n(inverse.data(), inverse_.size(), inverse_.begin());
    width_ = static_cast<std::size_t>(n);
  }

  void set_channels(const std::vector<double>& curvature) {
    double mean = 0;
    for (const double value : curvature) mean += value / static_cast<double>(curvature.size());
    scales_.resize(curvature.size());
    for (std::size_t j = 0; j < scales_.size(); ++j) {
      scales_[j] = static_cast<float>(mean / (curvature[j] + kPreconditionerDamping * mean));
    }
  }

  void operator()(const std::vector<float>& r, std::vector<float>& out) {
    const WeightView weight{.data = inverse_.data(), .dtype = DType::f32, .rows = width_, .cols = width_};
    const ops::Product product[] = {{weight, nullptr, out.data(), width_}};
    ops::matmul(pool_, r.data(), scales_.size(), width_, product, scratch_);
    pool_.run(scales_.size(), [&](std::size_t j) {
      for (std::size_t c = 0; c < width_; ++c) out[j * width_ + c] *= scales_[j];
    });
  }

 private:
  ThreadPool& pool_;
  std::size_t width_ = 0;
  std::vector<float> inverse_;
  std::vector<float> scales_;
  ops::MatmulScratch scratch_;
};

class Refiner {
 public:
  Refiner(FfnWeights& weights, const FfnRows& rows, const RefineOptions& options, ThreadPool& pool,
          const Progress& progress)
      : weights_(weights),
        rows_(rows),
        options_(options),
        dtype_(options.dtype == DType::bf16 ? DType::bf16 : DType::f32),
        pool_(pool),
        progress_(progress),
        total_(options.rounds * (2 * options.iterations + 1)),
        end_(rows.fitted + rows.held_out),
        fitted_(row_blocks(0, rows.fitted, options.max_rows)),
        judges_(row_blocks(rows.fitted, end_, options.max_rows / 4)),
        held_out_(row_blocks(rows.fitted, end_, 0)),
        operands_(pool, weights, dtype_),
        precondition_(pool, gram_of_inputs()) {}

  RefineReport run() {
    const FfnWeights start = weights_;
    report_.error_before = operands_.error(pool_, rows_, fitted_);
    report_.held_out_before = operands_.error(pool_, rows_, held_out_);
    check_finite(report_.error_before + report_.held_out_before);
    judged_ = operands_.error(pool_, rows_, judges_);
    for (std::size_t round = 0; round < options_.rounds; ++round) {
      fit_inner(FfnPart::up);
      fit_inner(FfnPart::gate);
      fit_down(round + 1 == options_.rounds);
    }
    report_.held_out_after = operands_.error(pool_, rows_, held_out_);
    if (report_.held_out_after < report_.held_out_before) {
      report_.error_after = operands_.error(pool_, rows_, fitted_);
    } else {
      // What judged was a part of the held-out rows.
      weights_ = start;
      report_.error_after = report_.error_before;
      report_.held_out_after = report_.held_out_before;
    }
    return report_;
  }

 private:
  void tell() const { report(progress_, kOp, done_, total_); }

  static void check_finite(double error) {
    if (std::isfinite(error)) return;
    fail<FormatError>({.op = kOp,
                       .what = "error of the layer as it is",
                       .expected = "a finite one",
                       .got = "NaN or infinity",
                       .todo = "check rows, targets and weights for numbers that are not finite"});
  }

  std::span<const float> factors_of(const RowBlock& block) const {
    return rows_.factors.empty() ? rows_.factors : rows_.factors.subspan(block.first, block.count);
  }

  linalg::Matrix gram_of_inputs() {
    std::size_t count = 0;
    for (const RowBlock& block : fitted_) count += block.count;
    SecondMoments moments(weights_.width, 0, dtype_, count);
    for (const RowBlock& block : fitted_) {
      moments.add(pool_, rows_.x + block.first * weights_.width, nullptr, block.count, factors_of(block));
    }
    moments.finish(pool_);
    return std::move(moments).moments().gram;
  }

  /// Whether a changed layer is better on the rows that judge; its error is then the one to beat.
  bool improved(double error) {
    if (!(error < judged_)) return false;
    judged_ = error;
    return true;
  }

  /// One of the two matrices inside, from where it is.
  void fit_inner(FfnPart part) {
    std::vector<float>& matrix = part == FfnPart::up ? weights_.up : weights_.gate;
    std::vector<float> best = matrix;
    std::vector<float> moved(matrix.size());
    const std::uint64_t planned = done_ + options_.iterations;
    LinearizedFfn linear(pool_, weights_, operands_, part, rows_, fitted_, dtype_, options_.memory);
    precondition_.set_channels(linear.curvature());
    const double lambda = options_.damping * mean_curvature(linear);
    const auto apply = [&](const std::vector<float>& p, std::vector<float>& out) {
      linear.normal(p, out);
      combine(pool_, lambda, p, 1, out);
    };
    const auto precondition = [&](const std::vector<float>& r, std::vector<float>& out) {
      precondition_(r, out);
    };
    const auto go_on = [&](const std::vector<float>& step) {
      moved = matrix;
      combine(pool_, 1, step, 1, moved);
      operands_.set(pool_, part, moved.data());
      const double before = judged_;
      if (improved(operands_.error(pool_, rows_, judges_))) best = moved;
      operands_.set(pool_, part, matrix.data());
      ++done_;
      tell();
      // The layer is linear in W_g only nearby: a first step that goes too far may yet be made up for.
      const bool first = done_ + options_.iterations == planned + 1;
      return first || judged_ < (1 - kWorthwhile) * before;
    };
    tell();
    report_.iterations +=
        conjugate_gradient(pool_, linear.gradient(), options_.iterations, apply, precondition, go_on);
    done_ = planned;
    matrix = std::move(best);
    operands_.set(pool_, part, matrix.data());
  }

  /// tr(H) ÷ k D, with rows' inputs and activations taken for independent.
  double mean_curvature(const LinearizedFfn& linear) const {
    double channels = 0;
    for (const double value : linear.curvature()) channels += value;
    double inputs = 0, weight = 0;
    for (const RowBlock& block : fitted_) {
      for (std::size_t r = block.first; r < block.first + block.count; ++r) {
        const double factor = rows_.factors.empty() ? 1.0 : rows_.factors[r];
        weight += factor * factor;
        const float* const x = rows_.x + r * weights_.width;
        for (std::size_t c = 0; c < weights_.width; ++c) inputs += factor * factor * x[c] * x[c];
      }
    }
    const double mean_square = inputs / std::max(weight * static_cast<double>(weights_.width), 1e-30);
    return mean_square * channels / static_cast<double>(weights_.inner);
  }

  Moments moments_of_down(bool all) {
    const std::vector<RowBlock> blocks = all ? row_blocks(0, rows_.fitted, 0) : fitted_;
    std::size_t count = 0, largest = 0;
    for (const RowBlock& block : blocks) {
      count += block.count;
      largest = std::max(largest, block.count);
    }
    SecondMoments moments(weights_.inner, weights_.width, dtype_, count);
    std::vector<float> gate(largest * weights_.inner), up(gate.size()), t(largest * weights_.width);
    ops::MatmulScratch scratch;
    for (const RowBlock& block : blocks) {
      tell();
      operands_.activate(pool_, rows_.x + block.first * weights_.width, block.count, gate.data(), up.data(),
                         scratch);
      ops::silu_mul(pool_, gate.data(), up.data(), block.count * weights_.inner);
      std::copy_n(rows_.targets + block.first * weights_.width, block.count * weights_.width, t.begin());
      for (std::size_t i = 0; i < block.count * weights_.width && !weights_.down_bias.empty(); ++i) {
        t[i] -= weights_.down_bias[i % weights_.width];
      }
      moments.add(pool_, gate.data(), t.data(), block.count, factors_of(block));
    }
    moments.finish(pool_);
    return std::move(moments).moments();
  }

  void fit_down(bool last) {
    using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    const Moments moments = moments_of_down(last);
    const auto rows = static_cast<Eigen::Index>(weights_.width);
    const auto cols = static_cast<Eigen::Index>(weights_.inner);
    const linalg::Matrix w0 = Eigen::Map<const RowMajor>(weights_.down.data(), rows, cols).cast<double>();
    std::vector<float> moved(weights_.down.size());
    for (const double damping : kDampings) {
      const linalg::Matrix w = ridge(moments, w0, damping);
      Eigen::Map<RowMajor>(moved.data(), rows, cols) = w.cast<float>();
      operands_.set_down(pool_, moved.data());
      tell();
      if (!improved(operands_.error(pool_, rows_, judges_))) break;
      weights_.down = moved;
    }
    operands_.set_down(pool_, weights_.down.data());
    ++done_;
    tell();
  }

  FfnWeights& weights_;
  const FfnRows& rows_;
  const RefineOptions& options_;
  const DType dtype_;
  ThreadPool& pool_;
  const Progress& progress_;
  const std::uint64_t total_;
  const std::size_t end_;
  const std::vector<RowBlock> fitted_;
  const std::vector<RowBlock> judges_;
  const std::vector<RowBlock> held_out_;
  FfnOperands operands_;
  Preconditioner precondition_;
  RefineReport report_;
  double judged_ = 0;
  std::uint64_t done_ = 0;
};

void check_size(const char* what, std::size_t size, std::size_t rows, std::size_t cols, bool optional) {
  if (size == rows * cols || (optional && size == 0)) return;
  fail({.op = kOp,
        .what = what,
        .expected = "[" + std::to_string(rows) + (cols == 1 ? "" : ", " + std::to_string(cols)) + "]",
        .got = std::to_string(size) + " numbers"});
}

void check(const FfnWeights& w, const FfnRows& rows, const RefineOptions& options) {
  if (w.width == 0 || w.inner == 0) {
    fail({.op = kOp, .what = "layer", .expected = "at least one input and one channel", .got = "none"});
  }
  check_size("gate", w.gate.size(), w.inner, w.width, false);
  check_size("up", w.up.size(), w.inner, w.width, false);
  check_size("down", w.down.size(), w.width, w.inner, false);
  check_size("gate bias", w.gate_bias.size(), w.inner, 1, true);
  check_size("up bias", w.up_bias.size(), w.inner, 1, true);
  check_size("down bias", w.down_bias.size(), w.width, 1, true);
  check_size("factors", rows.factors.size(), rows.fitted + rows.held_out, 1, true);
  if (rows.fitted == 0 || rows.held_out == 0 || rows.x == nullptr || rows.targets == nullptr) {
    fail({.op = kOp,
          .what = "rows",
          .expected = "some to fit and some held out",
          .got = std::to_string(rows.fitted) + " and " + std::to_string(rows.held_out)});
  }
  if (!std::isfinite(options.damping) || options.damping < 0) {
    fail({.op = kOp, .what = "damping", .expected = "0 or more", .got = std::to_string(options.damping)});
  }
}

}  // namespace

RefineReport refine_ffn(FfnWeights& weights, const FfnRows& rows, const RefineOptions& options,
                        ThreadPool& pool, const Progress& progress) {
  check(weights, rows, options);
  FfnWeights refined = weights;
  const RefineReport report = Refiner(refined, rows, options, pool, progress).run();
  weights = std::move(refined);
  return report;
}

}  // namespace modicum::retrofit
