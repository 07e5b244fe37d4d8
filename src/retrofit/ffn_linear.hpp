// SPDX-License-Identifier: Apache-2.0
// A gated feed-forward layer over many rows: its error, and how its output moves with one of its matrices.
#pragma once

#include <cstddef>
#include <vector>

#include <modicum/base/thread_pool.hpp>
#include <modicum/ops/matmul.hpp>
#include <modicum/retrofit/ffn_refine.hpp>
#include <modicum/tensor/matrix.hpp>

namespace modicum::retrofit {

/// The matrices that the layer's inner activations come from.
enum class FfnPart { up, gate };

/// Rows [first, first + count) of the calibration text.
struct RowBlock {
  std::size_t first = 0;
  std::size_t count = 0;
};

/// Blocks of up to 1024 rows that are about `most` of [begin, end), evenly spaced; 0: all of them.
std::vector<RowBlock> row_blocks(std::size_t begin, std::size_t end, std::size_t most);

/// A matrix as products read it: f32 where it lies, or a copy in bf16.
class Operand {
 public:
  void set(ThreadPool& pool, const float* values, std::size_t rows, std::size_t cols, DType dtype);
  const WeightView& view() const noexcept { return view_; }

 private:
  std::vector<bf16> rounded_;
  WeightView view_;
};

/// The layer's weights in the type that products take.
class FfnOperands {
 public:
  FfnOperands(ThreadPool& pool, const FfnWeights& weights, DType dtype);
  /// Another matrix in the place of one; `values` must outlive its use where the type is f32.
  void set(ThreadPool& pool, FfnPart part, const float* values);
  void set_down(ThreadPool& pool, const float* values);

  /// Activations of x [rows, D] before `silu` and their products: gate and up [rows, k].
  void activate(ThreadPool& pool, const float* x, std::size_t rows, float* gate, float* up,
                ops::MatmulScratch& scratch) const;
  /// Σ w² ‖t − y‖² ÷ Σ w² ‖t‖² over the blocks; 0 where all targets are.
  double error(ThreadPool& pool, const FfnRows& rows, const std::vector<RowBlock>& blocks) const;

  Operand gate, up, down;

 private:
  const FfnWeights& weights_;
  DType dtype_;
};

/// The derivative of w y with respect to W_u or W_g as a linear map A: P [k, D] → [rows, D],
///
///   A P = w · ((f · (x Pᵀ)) W_dᵀ),   f = silu(g) for W_u, u silu′(g) for W_g,   g = W_g x + b_g, u likewise,
///
/// and its adjoint E → ((w E W_d) · f)ᵀ x. f is rounded to the dtype, in both alike. Both walk the rows a
/// block at a time; f of as many blocks as fit into `memory` bytes is kept, of the others computed anew.
class LinearizedFfn {
 public:
  LinearizedFfn(ThreadPool& pool, const FfnWeights& weights, const FfnOperands& operands, FfnPart part,
                const FfnRows& rows, const std::vector<RowBlock>& blocks, DType dtype, std::size_t memory);

  std::size_t rows() const noexcept { return rows_; }
  void forward(const std::vector<float>& p, std::vector<float>& e);
  void adjoint(const std::vector<float>& e, std::vector<float>& p);
  /// out = Aᵀ A p.
  void normal(const std::vector<float>& p, std::vector<float>& out);
  /// Aᵀ w (t − y), y of the weights as they are.
  const std::vector<float>& gradient() const noexcept { return gradient_; }
  /// Σ w² f² ‖W_d column‖² of each channel: the curvature of what follows x.
  const std::vector<double>& curvature() const noexcept { return curvature_; }

 private:
  /// What products read of a block, in elements of the dtype.
  struct Block {
    std::vector<std::byte> f;          ///< [count, k]
    std::vector<std::byte> f_columns;  ///< [k, count]
    std::vector<std::byte> x_columns;  ///< [D, count]
  };
  void read(std::size_t memory);
  void fill(const RowBlock& rows, Block& block);
  void add_curvature(const RowBlock& rows, const Block& block);
  /// That of `blocks_[i]`, kept or filled anew.
  const Block& block(std::size_t i);
  void forward_block(const RowBlock& rows, const Block& block, float* e);
  void adjoint_block(const RowBlock& rows, const Block& block, const float* e, float* p);
  /// w (t − y) of the activations in `wide_` and `other_`, which it spoils.
  void residual_block(const RowBlock& rows, float* e);
  /// to = w · from, [count, D]; they may be the same.
  void weigh(const RowBlock& rows, const float* from, float* to) const;

  ThreadPool& pool_;
  const FfnWeights& weights_;
  const FfnOperands& operands_;
  const FfnPart part_;
  const FfnRows& text_;
  const std::vector<RowBlock>& blocks_;
  const DType dtype_;
  std::size_t rows_ = 0;
  std::vector<Block> kept_;  ///< of the first blocks
  Block filled_;             ///< of another
  std::vector<float> gradient_;
  std::vector<double> curvature_;
  std::vector<float> down_columns_;  ///< [k, D]
  std::vector<float> wide_, other_, narrow_, weighed_;
  Operand direction_, errors_;
  ops::MatmulScratch scratch_;
};

}  // namespace modicum::retrofit
