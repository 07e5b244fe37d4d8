// SPDX-License-Identifier: Apache-2.0
// What the solvers that round a matrix require of their arguments. All throw `InvalidArgument`.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

#include <modicum/linalg/dense.hpp>
#include <modicum/retrofit/round_matrix.hpp>

namespace modicum::retrofit {

/// Bits, groups and the scales' dtype, for rows of `cols`.
void check_round_options(std::string_view op, const RoundOptions& options, std::size_t cols);

/// `weights` is [rows, cols], finite, and not empty.
void check_weights(std::string_view op, std::span<const float> weights, std::size_t rows, std::size_t cols);

/// Finite, symmetric, [cols, cols], and no negative diagonal. Symmetric to 1e-6 of the largest diagonal
/// element, which sums in f32 keep and a matrix that is something else does not.
void check_gram(std::string_view op, const linalg::Matrix& gram, std::size_t cols);

}  // namespace modicum::retrofit
