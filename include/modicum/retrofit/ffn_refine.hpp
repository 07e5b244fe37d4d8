// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include <modicum/base/progress.hpp>
#include <modicum/base/thread_pool.hpp>
#include <modicum/tensor/dtype.hpp>

namespace modicum::retrofit {

/// A gated feed-forward layer y = W_d (silu(W_g x + b_g) · (W_u x + b_u)) + b_d, silu(z) = z / (1 + e^−z)
/// (Shazeer 2020). Row-major f32, [outputs, inputs]; a bias is empty where there is none.
struct FfnWeights {
  std::size_t width = 0;    ///< D, of x and y
  std::size_t inner = 0;    ///< k, channels
  std::vector<float> gate;  ///< [k, D]
  std::vector<float> up;    ///< [k, D]
  std::vector<float> down;  ///< [D, k]
  std::vector<float> gate_bias, up_bias, down_bias;
};

/// What the layer reads and what it should give, f32 [fitted + held_out, D]: rows that are fitted on, then
/// those that only judge.
struct FfnRows {
  const float* x = nullptr;        ///< its input as it will have it: normalised, of the shrunken model
  const float* targets = nullptr;  ///< of y
  std::span<const float> factors;  ///< roots of the rows' weights; empty: 1
  std::size_t fitted = 0;
  std::size_t held_out = 0;
};

struct RefineOptions {
  std::size_t rounds = 2;        ///< up, gate, down
  std::size_t iterations = 8;    ///< of conjugate gradients for up or gate, at most
  double damping = 1e-3;         ///< of these fits, times the mean curvature
  std::size_t max_rows = 16384;  ///< fitted rows that iterations use; 0: all. `down` is fitted on all at last
  DType dtype = DType::f32;      ///< bf16: products as a bf16 model's; the weights stay f32
  std::size_t memory = 512 << 20;  ///< bytes of activations that are kept from iteration to iteration
};

/// Errors are Σ w² ‖t − y‖² ÷ Σ w² ‖t‖² of the layer with its weights rounded to the dtype: the first two on
/// the fitted rows that iterations use, the others on all that are held out.
struct RefineReport {
  double error_before = 0;
  double error_after = 0;
  double held_out_before = 0;
  double held_out_after = 0;
  std::size_t iterations = 0;  ///< of conjugate gradients, over all rounds
};

/// Makes a layer, say one that lost channels, give its targets more nearly, by alternating least squares. For
/// fixed gate activations y is linear in W_u; a step of Gauss and Newton makes it linear in W_g; and it is
/// linear in W_d. Each fit moves from the weights that are there, with damping. W_u and W_g have too many
/// unknowns together for a factorisation and go by conjugate gradients (Hestenes and Stiefel 1952) on the
/// normal equations, preconditioned by a Kronecker product as of K-FAC (Martens and Grosse 2015,
/// arXiv:1503.05671); W_d by `ridge`.
///
/// Held-out rows decide which iterate is taken, if any, and whether another one pays, so the layer never gets
/// worse on them: it stays as it was at worst. Bit-identical for any number of threads. Memory beside x and
/// targets: about 12 k D floats, `options.memory`, and for W_d k² doubles twice.
///
/// Throws `InvalidArgument` for shapes that do not fit, no rows to fit or none held out; `FormatError` for
/// rows or weights that lead to NaN or infinity; `Cancelled`. The weights are then as they were.
RefineReport refine_ffn(FfnWeights& weights, const FfnRows& rows, const RefineOptions& options,
                        ThreadPool& pool, const Progress& progress = nullptr);

}  // namespace modicum::retrofit
