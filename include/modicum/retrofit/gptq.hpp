// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <modicum/retrofit/round_matrix.hpp>

namespace modicum::retrofit {

/// Rounds W [rows, cols], f32, so that W x changes little for inputs x with second moments G = `gram`, E[x
/// xᵀ], [cols, cols]: GPTQ (Frantar et al. 2022, arXiv 2210.17323). Columns are rounded one after the other
/// to the grid of `round_group`; the error made so far is carried into the columns that follow,
///
///     Ŵ_k = round(W_k + Σ_{j<k} (W_j − Ŵ_j) · U_jk),   G + λI = (I + U) D (I + U)ᵀ,
///
/// with U strictly upper triangular, D diagonal and λ = damping · mean(diag G). That is GPTQ's update by the
/// Cholesky factor of (G + λI)⁻¹ without the inverse (Chee et al. 2023, QuIP, arXiv 2307.13304, theorem 6).
///
/// A group's scale is searched when its first column is reached, on weights that carry the error up to there;
/// with whole rows and with `act_order`, beforehand on W. A column whose input was always zero is rounded to
/// nearest. The factorisation is in f64, what is carried in f32. Bit-identical for any number of threads of
/// `pool` (`linalg` has its own).
///
/// Memory beside arguments and result: 8 cols² + 4 rows · (2 cols + 256) + 1024 · cols bytes; time: cols³ / 3
/// flops in f64 and 5 rows · cols² in f32, of which 4 make the report. Throws as `round_nearest`, and
/// `InvalidArgument` where `damping` is not a finite number ≥ 0 or G + λI not positive definite.
RoundedMatrix round_gptq(std::span<const float> weights, std::size_t rows, std::size_t cols,
                         const linalg::Matrix& gram, const RoundOptions& options, ThreadPool& pool);

}  // namespace modicum::retrofit
