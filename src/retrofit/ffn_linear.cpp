// SPDX-License-Identifier: Apache-2.0
#include "ffn_linear.hpp"

#include <algorithm>
#include <cmath>

#include <modicum/ops/elementwise.hpp>

#include "conjugate_gradient.hpp"

namespace modicum::retrofit {
namespace {

constexpr std::size_t kBlockRows = 1024;
/// Columns that a task transposes.
constexpr std::size_t kTransposed = 64;

/// Calls body(begin, end) for ranges of columns of a matrix [.., cols].
template <class Body>
void in_columns(ThreadPool& pool, std::size_t cols, const Body& body) {
  pool.run((cols + kTransposed - 1) / kTransposed,
           [&](std::size_t i) { body(i * kTransposed, std::min(cols, (i + 1) * kTransposed)); });
}

/// to [cols, rows] = from [rows, cols], in elements of T.
template <class T>
void transpose(ThreadPool& pool, const float* from, std::size_t rows, std::size_t cols, T* to) {
  in_columns(pool, cols, [&](std::size_t begin, std::size_t end) {
    for (std::size_t r = 0; r < rows; ++r) {
      for (std::size_t c = begin; c < end; ++c) to[c * rows + r] = from_f32<T>(from[r * cols + c]);
    }
  });
}

/// values · f, elementwise.
void multiply(ThreadPool& pool, const std::vector<std::byte>& f, DType dtype, float* values,
              std::size_t count) {
  dispatch(dtype, [&](auto tag) {
    const auto* const factors = reinterpret_cast<const decltype(tag)*>(f.data());
    in_blocks(pool, count, [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) values[i] *= to_f32(factors[i]);
    });
  });
}

float silu(float z) {
  return z / (1.0f + std::exp(-z));
}

/// silu′(z) = σ(z) (1 + z (1 − σ(z))).
float silu_slope(float z) {
  const float sigmoid = 1.0f / (1.0f + std::exp(-z));
  return sigmoid * (1.0f + z * (1.0f - sigmoid));
}

const float* or_null(const std::vector<float>& bias) {
  return bias.empty() ? nullptr : bias.data();
}

}  // namespace

std::vector<RowBlock> row_blocks(std::size_t begin, std::size_t end, std::size_t most) {
  const std::size_t rows = end - begin;
  const std::size_t used = most == 0 ? rows : std::min(most, rows);
  const std::size_t count = (used + kBlockRows - 1) / kBlockRows;
  std::vector<RowBlock> blocks(count);
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t taken = used * (i + 1) / count - used * i / count;
    // Whole vectors for the kernels, except where all rows are wanted.
    const std::size_t even = used == rows || taken < 64 ? taken : taken / 64 * 64;
    blocks[i] = {begin + (used == rows ? used * i / count : rows * i / count), even};
  }
  return blocks;
}

void Operand::set(ThreadPool& pool, const float* values, std::size_t rows, std::size_t cols, DType dtype) {
  if (dtype != DType::bf16) {
    view_ = {.data = values, .dtype = DType::f32, .rows = rows, .cols = cols};
    return;
  }
  rounded_.resize(rows * cols);
  in_blocks(pool, rounded_.size(), [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) rounded_[i] = to_bf16(values[i]);
  });
  view_ = {.data = rounded_.data(), .dtype = DType::bf16, .rows = rows, .cols = cols};
}

FfnOperands::FfnOperands(ThreadPool& pool, const FfnWeights& weights, DType dtype)
    : weights_(weights), dtype_(dtype) {
  set(pool, FfnPart::gate, weights.gate.data());
  set(pool, FfnPart::up, weights.up.data());
  set_down(pool, weights.down.data());
}

void FfnOperands::set(ThreadPool& pool, FfnPart part, const float* values) {
  (part == FfnPart::up ? up : gate).set(pool, values, weights_.inner, weights_.width, dtype_);
}

void FfnOperands::set_down(ThreadPool& pool, const float* values) {
  down.set(pool, values, weights_.width, weights_.inner, dtype_);
}

void FfnOperands::activate(ThreadPool& pool, const float* x, std::size_t rows, float* to_gate, float* to_up,
                           ops::MatmulScratch& scratch) const {
  const ops::Product products[] = {{gate.view(), or_null(weights_.gate_bias), to_gate, weights_.inner},
                                   {up.view(), or_null(weights_.up_bias), to_up, weights_.inner}};
  ops::matmul(pool, x, rows, weights_.width, products, scratch);
}

double FfnOperands::error(ThreadPool& pool, const FfnRows& rows, const std::vector<RowBlock>& blocks) const {
  const std::size_t width = weights_.width;
  const ops::SwigluWeights layer{.gate = gate.view(),
                                 .up = up.view(),
                                 .down = down.view(),
                                 .gate_bias = or_null(weights_.gate_bias),
                                 .up_bias = or_null(weights_.up_bias),
                                 .down_bias = or_null(weights_.down_bias)};
  ops::MatmulScratch scratch;
  std::vector<float> y;
  std::vector<double> lost, energy;
  double total_lost = 0, total_energy = 0;
  for (const RowBlock& block : blocks) {
    y.assign(block.count * width, 0.0f);
    lost.assign(block.count, 0.0);
    energy.assign(block.count, 0.0);
    ops::swiglu(pool, rows.x + block.first * width, block.count, layer, y.data(), scratch);
    pool.run(block.count, [&](std::size_t r) {
      const float* const t = rows.targets + (block.first + r) * width;
      const double factor = rows.factors.empty() ? 1.0 : rows.factors[block.first + r];
      for (std::size_t c = 0; c < width; ++c) {
        const double difference = factor * (static_cast<double>(t[c]) - y[r * width + c]);
        lost[r] += difference * difference;
        energy[r] += factor * factor * t[c] * t[c];
      }
    });
    for (std::size_t r = 0; r < block.count; ++r) {
      total_lost += lost[r];
      total_energy += energy[r];
    }
  }
  // NaN stays NaN: it must not pass for a perfect fit.
  return total_energy == 0 ? 0.0 : total_lost / total_energy;
}

LinearizedFfn::LinearizedFfn(ThreadPool& pool, const FfnWeights& weights, const FfnOperands& operands,
                             FfnPart part, const FfnRows& rows, const std::vector<RowBlock>& blocks,
                             DType dtype, std::size_t memory)
    : pool_(pool),
      weights_(weights),
      operands_(operands),
      part_(part),
      text_(rows),
      blocks_(blocks),
      dtype_(dtype),
      gradient_(weights.inner * weights.width),
      curvature_(weights.inner),
      down_columns_(weights.inner * weights.width) {
  transpose(pool_, weights.down.data(), weights.width, weights.inner, down_columns_.data());
  read(memory);
}

void LinearizedFfn::read(std::size_t memory) {
  std::size_t largest = 0;
  for (const RowBlock& rows : blocks_) {
    largest = std::max(largest, rows.count);
    rows_ += rows.count;
  }
  wide_.resize(largest * weights_.inner);
  other_.resize(wide_.size());
  narrow_.resize(largest * weights_.width);
  weighed_.resize(narrow_.size());
  const std::size_t bytes = (2 * weights_.inner + weights_.width) * largest * size_of(dtype_);
  kept_.resize(std::min(blocks_.size(), memory / std::max<std::size_t>(1, bytes)));
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    Block& to = i < kept_.size() ? kept_[i] : filled_;
    fill(blocks_[i], to);
    add_curvature(blocks_[i], to);
    residual_block(blocks_[i], narrow_.data());
    adjoint_block(blocks_[i], to, narrow_.data(), gradient_.data());
  }
  for (std::size_t j = 0; j < weights_.inner; ++j) {
    double norm = 0;
    for (std::size_t c = 0; c < weights_.width; ++c) {
      const double value = down_columns_[j * weights_.width + c];
      norm += value * value;
    }
    curvature_[j] *= norm;
  }
}

void LinearizedFfn::fill(const RowBlock& rows, Block& block) {
  const std::size_t k = weights_.inner, n = rows.count;
  operands_.activate(pool_, text_.x + rows.first * weights_.width, n, wide_.data(), other_.data(), scratch_);
  dispatch(dtype_, [&](auto tag) {
    using T = decltype(tag);
    for (std::vector<std::byte>* const f : {&block.f, &block.f_columns}) f->resize(n * k * sizeof(T));
    block.x_columns.resize(n * weights_.width * sizeof(T));
    T* const f = reinterpret_cast<T*>(block.f.data());
    T* const columns = reinterpret_cast<T*>(block.f_columns.data());
    in_columns(pool_, k, [&](std::size_t begin, std::size_t end) {
      for (std::size_t r = 0; r < n; ++r) {
        for (std::size_t c = begin; c < end; ++c) {
          const std::size_t i = r * k + c;
          f[i] = from_f32<T>(part_ == FfnPart::up ? silu(wide_[i]) : other_[i] * silu_slope(wide_[i]));
          columns[c * n + r] = f[i];
        }
      }
    });
    transpose(pool_, text_.x + rows.first * weights_.width, n, weights_.width,
              reinterpret_cast<T*>(block.x_columns.data()));
  });
}

void LinearizedFfn::add_curvature(const RowBlock& rows, const Block& block) {
  dispatch(dtype_, [&](auto tag) {
    const auto* const columns = reinterpret_cast<const decltype(tag)*>(block.f_columns.data());
    pool_.run(weights_.inner, [&](std::size_t j) {
      double sum = 0;
      for (std::size_t r = 0; r < rows.count; ++r) {
        const double factor = text_.factors.empty() ? 1.0 : text_.factors[rows.first + r];
        const double value = factor * to_f32(columns[j * rows.count + r]);
        sum += value * value;
      }
      curvature_[j] += sum;
    });
  });
}

const LinearizedFfn::Block& LinearizedFfn::block(std::size_t i) {
  if (i < kept_.size()) return kept_[i];
  fill(blocks_[i], filled_);
  return filled_;
}

void LinearizedFfn::weigh(const RowBlock& rows, const float* from, float* to) const {
  const std::size_t width = weights_.width;
  pool_.run(rows.count, [&](std::size_t r) {
    const float factor = text_.factors.empty() ? 1.0f : text_.factors[rows.first + r];
    for (std::size_t c = 0; c < width; ++c) to[r * width + c] = factor * from[r * width + c];
  });
}

void LinearizedFfn::residual_block(const RowBlock& rows, float* e) {
  const std::size_t width = weights_.width;
  ops::silu_mul(pool_, wide_.data(), other_.data(), rows.count * weights_.inner);
  const ops::Product down[] = {{operands_.down.view(), or_null(weights_.down_bias), e, width}};
  ops::matmul(pool_, wide_.data(), rows.count, weights_.inner, down, scratch_);
  const float* const t = text_.targets + rows.first * width;
  in_blocks(pool_, rows.count * width, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) e[i] = t[i] - e[i];
  });
  weigh(rows, e, e);
}

void LinearizedFfn::forward_block(const RowBlock& rows, const Block& block, float* e) {
  const std::size_t k = weights_.inner, width = weights_.width;
  const ops::Product moved[] = {{direction_.view(), nullptr, wide_.data(), k}};
  ops::matmul(pool_, text_.x + rows.first * width, rows.count, width, moved, scratch_);
  multiply(pool_, block.f, dtype_, wide_.data(), rows.count * k);
  const ops::Product down[] = {{operands_.down.view(), nullptr, e, width}};
  ops::matmul(pool_, wide_.data(), rows.count, k, down, scratch_);
  weigh(rows, e, e);
}

void LinearizedFfn::adjoint_block(const RowBlock& rows, const Block& block, const float* e, float* p) {
  const std::size_t k = weights_.inner, width = weights_.width, n = rows.count;
  weigh(rows, e, weighed_.data());
  errors_.set(pool_, weighed_.data(), n, width, dtype_);
  // Transposed from the start, [k, n]: what comes next sums over rows.
  const ops::Product back[] = {{errors_.view(), nullptr, wide_.data(), n}};
  ops::matmul(pool_, down_columns_.data(), k, width, back, scratch_);
  multiply(pool_, block.f_columns, dtype_, wide_.data(), n * k);
  const WeightView x{.data = block.x_columns.data(), .dtype = dtype_, .rows = width, .cols = n};
  const ops::Product sums[] = {{x, nullptr, p, width, true}};
  ops::matmul(pool_, wide_.data(), k, n, sums, scratch_);
}

void LinearizedFfn::forward(const std::vector<float>& p, std::vector<float>& e) {
  e.resize(rows_ * weights_.width);
  direction_.set(pool_, p.data(), weights_.inner, weights_.width, dtype_);
  float* to = e.data();
  for (std::size_t i = 0; i < blocks_.size(); to += blocks_[i++].count * weights_.width) {
    forward_block(blocks_[i], block(i), to);
  }
}

void LinearizedFfn::adjoint(const std::vector<float>& e, std::vector<float>& p) {
  p.assign(weights_.inner * weights_.width, 0.0f);
  const float* from = e.data();
  for (std::size_t i = 0; i < blocks_.size(); from += blocks_[i++].count * weights_.width) {
    adjoint_block(blocks_[i], block(i), from, p.data());
  }
}

void LinearizedFfn::normal(const std::vector<float>& p, std::vector<float>& out) {
  out.assign(weights_.inner * weights_.width, 0.0f);
  direction_.set(pool_, p.data(), weights_.inner, weights_.width, dtype_);
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    const Block& read = block(i);
    forward_block(blocks_[i], read, narrow_.data());
    adjoint_block(blocks_[i], read, narrow_.data(), out.data());
  }
}

}  // namespace modicum::retrofit
