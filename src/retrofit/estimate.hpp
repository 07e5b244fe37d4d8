// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <modicum/io/checkpoint.hpp>
#include <modicum/retrofit/run.hpp>

namespace modicum::retrofit {

/// What a run of a plan that was checked needs.
RunEstimate estimate_run(const Checkpoint& from, const Plan& plan, const CalibrationTokens& calibration);

}  // namespace modicum::retrofit
