// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <modicum/tune/delta_merge.hpp>

namespace modicum::tune {

/// λ Σ w (θ − θ_base): task arithmetic (Ilharco et al. 2023, arXiv:2212.04089). With the instruct model of a
/// base, and a continued base to build upon, it is the Chat Vector (Huang et al. 2024, arXiv:2310.04799):
/// θ_continued + w (θ_chat − θ_base).
using TaskArithmetic = DeltaMerge<KeepAll, WeightedSum>;
static_assert(MergeMethod<TaskArithmetic>);

}  // namespace modicum::tune
