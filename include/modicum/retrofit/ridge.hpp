// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include <modicum/linalg/dense.hpp>
#include <modicum/statistics/moments.hpp>

namespace modicum::retrofit {

/// Those of the inputs `kept`, ascending.
Moments moments_of(const Moments& all, std::span<const std::size_t> kept);

/// Σ ‖t − W x‖² ÷ Σ ‖t‖² over the rows of the moments, for W [m, n]; 0 where there is no energy.
double relative_error(const linalg::Matrix& w, const Moments& moments);

/// argmin_W Σ ‖t − W x‖² + λ ‖W − W₀‖² = (cross + λ W₀)(gram + λ I)⁻¹, with λ = `damping` · tr(gram) / n
/// (Hoerl and Kennard 1970, toward W₀). Throws `FormatError` where the moments are not finite, or where not
/// even a damping of 1 makes the Gram matrix positive definite.
linalg::Matrix ridge(const Moments& moments, const linalg::Matrix& w0, double damping);

/// A fit and how well it does.
struct RidgeFit {
  linalg::Matrix w;
  double damping = 0;
  double error = 0;           ///< relative, on the rows of the fit
  double held_out_error = 0;  ///< relative, on rows that the fit did not see
};

/// The damping of `candidates` with the least error on `held_out`; of equal ones the larger.
RidgeFit ridge_select(const Moments& moments, const Moments& held_out, const linalg::Matrix& w0,
                      std::span<const double> candidates);

/// 1e-5 … 0.1, what `run` chooses from.
std::span<const double> default_dampings();

}  // namespace modicum::retrofit
