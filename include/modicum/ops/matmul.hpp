// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <modicum/base/page_allocator.hpp>
#include <modicum/base/thread_pool.hpp>
#include <modicum/tensor/matrix.hpp>

namespace modicum::ops {

/// One product that shares its input with others: y[t, o] = Σ_k x[t, k] · w[o, k] + bias[o], f32, row stride
/// `y_stride`; with `add`, that is added to what y holds.
struct Product {
  WeightView weight;
  const float* bias = nullptr;  ///< [rows of weight] or null
  float* y = nullptr;
  std::size_t y_stride = 0;
  bool add = false;
};

/// Memory that `matmul` packs activations into; kept by the caller so that a step allocates nothing.
struct MatmulScratch {
  using Words = std::vector<std::uint64_t, PageAllocator<std::uint64_t>>;
  using Floats = std::vector<float, PageAllocator<float>>;
  Words words;
  Words hidden;     ///< `swiglu`: what the last product reads
  Floats gate, up;  ///< `swiglu`, where its steps are separate
};

/// x is f32 [tokens, cols], row-major without gaps; all weights have that many columns and one dtype.
///
/// Numeric contract: products are summed in f32, each y[t, o] by itself and in one order that depends on the
/// instruction set alone, so it is bit-identical whatever the number of threads or tokens. With bf16 weights,
/// x is rounded to bf16 first; with f16 and f32 weights it stays f32. With integer weights, x is rounded to
/// int8 by groups of 32 columns with a scale each (round to nearest by the largest magnitude), the sum of a
/// group is exact, and groups are added in order: y = Σ_g float(Σ w · x) · (scale of w · scale of x). With
/// `int8_rows` weights a token has one scale and the whole sum is exact: y = float(Σ w · x) · (scale of w ·
/// scale of x). Throws `InvalidArgument` where shapes, dtypes or scales do not fit.
void matmul(ThreadPool& pool, const float* x, std::size_t tokens, std::size_t cols,
            std::span<const Product> products, MatmulScratch& scratch);

/// The weights of a gated feed-forward layer: gate and up [inner, cols] of one dtype, down [cols, inner];
/// biases may be null.
struct SwigluWeights {
  WeightView gate;
  WeightView up;
  WeightView down;
  const float* gate_bias = nullptr;
  const float* up_bias = nullptr;
  const float* down_bias = nullptr;
};

/// y += (silu(x gateᵀ) · (x upᵀ)) downᵀ, silu(z) = z / (1 + e^−z) (Shazeer 2020, SwiGLU); x and y are f32
/// [tokens, cols]. Numeric contract as of `matmul`; with bf16 weights the inner activations are rounded to
/// bf16.
void swiglu(ThreadPool& pool, const float* x, std::size_t tokens, const SwigluWeights& weights, float* y,
            MatmulScratch& scratch);

}  // namespace modicum::ops
