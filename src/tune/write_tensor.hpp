// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

#include <modicum/tune/merge.hpp>

#include "../io/checkpoint_draft.hpp"
#include "merger.hpp"

namespace modicum::tune {

/// Merges a tensor and writes it as the draft's number `index`, a run of tiles at a time and in parallel.
/// Returns what changed.
MergedKind write_tensor(Merger& merger, const TensorSpec& spec, const CheckpointDraft& draft,
                        std::size_t index);

}  // namespace modicum::tune
