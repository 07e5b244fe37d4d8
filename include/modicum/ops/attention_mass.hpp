// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

#include <modicum/base/thread_pool.hpp>
#include <modicum/ops/attention.hpp>

namespace modicum::ops {

/// mass[j] += Σ_r,h softmax_j(scale · q[r, h, :] · k[j, h / group, :]): how much of the attention of all
/// given rows and heads lies on each position of their paths, up to the last that a query sees; each row and
/// head adds 1 in all. In f32 for every dtype of keys, which are read twice, and values not at all: once for
/// the softmax's sums and once for its weights (Dao et al. 2022, appendix B, recomputes them in the same
/// way). Arguments as of `attention`; the result does not depend on the number of threads.
void attention_mass(ThreadPool& pool, const AttentionShape& shape, std::span<const RotatedQueries> q,
                    std::span<const QueryGroup> groups, float* mass);

}  // namespace modicum::ops
