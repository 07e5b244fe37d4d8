// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

#include <modicum/linalg/dense.hpp>

namespace modicum::retrofit {

/// A linear layer of two factors, W ≈ u v.
struct LowRank {
  linalg::Matrix u;   ///< [outputs, rank], orthonormal columns (of zeros beyond the rank of W G^½)
  linalg::Matrix v;   ///< [rank, inputs]
  double loss = 0.0;  ///< tr((W − u v) G (W − u v)ᵀ) / tr(W G Wᵀ): output energy that is lost, as a share
};

/// The factors of `weight` W [outputs, inputs] that lose least of its output on text with second moment
/// `gram` G = E[x xᵀ] [inputs, inputs], in closed form (as SVD-LLM, Wang et al. 2024, arXiv 2403.07378): u
/// are the left singular vectors of W G^½, and v = uᵀ W, since the best approximation of W G^½ is its
/// projection on them. So G is never inverted. What is lost is the sum of the squared singular values that
/// are left out.
///
/// `damping` adds that share of G's mean diagonal to its diagonal, which keeps some of W's action on inputs
/// that the text did not have; the loss is without it. Throws `InvalidArgument` for a rank of 0 or above the
/// smaller side, shapes that do not fit, a negative damping, and numbers that are not finite.
LowRank low_rank(const linalg::Matrix& weight, const linalg::Matrix& gram, std::size_t rank,
                 double damping = 0.0);

}  // namespace modicum::retrofit
