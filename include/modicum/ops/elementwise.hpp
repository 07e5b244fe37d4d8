// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <span>

#include <modicum/base/thread_pool.hpp>
#include <modicum/tensor/dtype.hpp>
#include <modicum/tensor/matrix.hpp>

namespace modicum::ops {

/// y[r, :] = x[r, :] / sqrt(mean(x[r, :]²) + eps) · weight, for `rows` rows of weight.size() (Zhang and
/// Sennrich 2019, equation 4). x may be y.
void rms_norm(ThreadPool& pool, const float* x, std::span<const float> weight, float eps, std::size_t rows,
              float* y);

/// gate = silu(gate) · up, elementwise, silu(z) = z / (1 + e^−z) (Shazeer 2020, SwiGLU).
void silu_mul(ThreadPool& pool, float* gate, const float* up, std::size_t count);

/// Rotates the halves of each head: with a = x[i], b = x[i + d/2], position p and angle θ_i p,
/// (a, b) → (a cos − b sin, b cos + a sin) (Su et al. 2021, in the half-split form of transformers).
/// x is [rows, heads, head_dim] with `stride` floats between rows; cos and sin are [rows, head_dim / 2].
void rope(ThreadPool& pool, float* x, std::size_t rows, std::size_t heads, std::size_t head_dim,
          std::size_t stride, const float* cos, const float* sin);

/// out[r, :] = row ids[r] of `table`, as f32.
void gather_rows(const WeightView& table, std::span<const std::int32_t> ids, float* out);

}  // namespace modicum::ops
