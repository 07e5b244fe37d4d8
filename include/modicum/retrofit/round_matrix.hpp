// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <modicum/base/thread_pool.hpp>
#include <modicum/linalg/dense.hpp>
#include <modicum/tensor/dtype.hpp>

namespace modicum::retrofit {

struct RoundOptions {
  std::size_t bits = 4;  ///< 2 to 8; files hold 4 and 8
  /// Columns that share a scale: a multiple of 32 that divides a row; 0: all of a row.
  std::size_t group = 32;
  DType scale_dtype = DType::bf16;
  /// `round_gptq`: columns in descending order of their inputs' energy, with scales found beforehand on the
  /// columns' own groups ("static groups"), so that a file needs no g_idx.
  bool act_order = false;
  double damping = 0.01;  ///< `round_gptq`: of the Gram's mean diagonal, added to the diagonal
};

/// A linear layer's weights as symmetric integers: W[r, c] ≈ integers[r, c] · scales[r, c / group].
struct RoundedMatrix {
  std::size_t rows = 0;
  std::size_t cols = 0;
  std::size_t bits = 0;
  std::size_t group = 0;              ///< 0: a scale a row
  std::vector<std::int8_t> integers;  ///< [rows, cols]
  std::vector<float> scales;          ///< [rows, groups], each as `scale_dtype` holds it
  double error = 0;                   ///< tr(ΔW G ΔWᵀ), ΔW = W − Ŵ, in the units of G
  double energy = 0;                  ///< tr(W G Wᵀ), what error is to be compared with

  std::size_t groups() const { return group == 0 ? 1 : cols / group; }
};

/// Ŵ, [rows, cols].
std::vector<float> dequantize(const RoundedMatrix& matrix);

/// tr(W G Wᵀ) = Σ_rows w G wᵀ: with G = E[x xᵀ], the mean square of the outputs W x, summed over them.
/// Products are summed in f32, rows in f64. Bit-identical for any number of threads. Takes rows · (cols +
/// 256) + 256 · cols floats beside its arguments. Arguments are trusted: `weights` is [rows, cols], `gram`
/// finite and [cols, cols].
double output_energy(std::span<const float> weights, std::size_t rows, const linalg::Matrix& gram,
                     ThreadPool& pool);

/// Each weight to the nearest integer of its group (`round_group`), without a look at its inputs. `gram`, the
/// second moments E[x xᵀ] of the layer's input x, serves the report only; null stands for the identity, with
/// which error and energy are sums of squares. Bit-identical for any number of threads.
///
/// Throws `InvalidArgument` for bits, groups and shapes that do not fit, weights that are not finite, and a
/// Gram that is not a finite, symmetric matrix [cols, cols] with a diagonal that is nowhere negative.
RoundedMatrix round_nearest(std::span<const float> weights, std::size_t rows, std::size_t cols,
                            const RoundOptions& options, const linalg::Matrix* gram, ThreadPool& pool);

}  // namespace modicum::retrofit
