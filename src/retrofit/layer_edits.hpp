// SPDX-License-Identifier: Apache-2.0
// The two streams of a run through the layers, and what is done to each layer on the way.
#pragma once

#include <cstddef>
#include <map>

#include <modicum/base/progress.hpp>
#include <modicum/base/thread_pool.hpp>
#include <modicum/io/checkpoint.hpp>
#include <modicum/model/weights.hpp>
#include <modicum/retrofit/run.hpp>

#include "journal.hpp"

namespace modicum::retrofit {

/// Throws `InvalidArgument` for text that does not fit the model, or is too short for the plan's fits.
void check_calibration(const Plan& plan, const ModelConfig& config, const CalibrationTokens& calibration);

/// Edits every layer that stays, or takes it from the journal where it is done. By layer of the source.
std::map<std::size_t, LayerRecord> edit_layers(const Checkpoint& from, const ModelWeights& weights,
                                               const Plan& plan, const CalibrationTokens& calibration,
                                               const RunOptions& options, Journal& journal, ThreadPool& pool,
                                               const Progress& progress, std::size_t& resumed);

}  // namespace modicum::retrofit
