// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <vector>

#include <modicum/linalg/dense.hpp>
#include <modicum/retrofit/ridge.hpp>

namespace modicum::retrofit {

/// How the channels that a narrower layer keeps are chosen.
enum class ChannelChoice {
  second_order,  ///< greedy by the increase of the squared error after the best refit of all others
  wanda,         ///< ‖w_j‖ · √(Σ x_j²), one score a channel (An et al. 2024, "FLAP", arXiv:2312.11983)
  magnitude,     ///< ‖w_j‖
};

/// The `count` inputs of y = W x that are worth keeping, ascending. `second_order`: from the least-squares
/// solution W* of the moments, channel j costs ‖w*_j‖² / [H⁻¹]_jj with H = gram + λ I, and what is removed is
/// folded into the others at once (optimal brain surgeon by columns: Hassibi and Stork 1993; Ling et al.
/// 2024, "SlimGPT", arXiv:2412.18110); a 64th of the removals is taken at a time. Memory: 2 n² doubles beside
/// the moments. Throws `InvalidArgument` where `count` is 0 or above n.
std::vector<std::size_t> choose_channels(const Moments& moments, const linalg::Matrix& w, std::size_t count,
                                         ChannelChoice choice, double damping = 1e-3);

/// The same order for several widths at once: all inputs, from the first that is removed to the last.
std::vector<std::size_t> removal_order(const Moments& moments, const linalg::Matrix& w, std::size_t keep,
                                       ChannelChoice choice, double damping = 1e-3);

}  // namespace modicum::retrofit
