// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <modicum/io/model_config.hpp>

#include "../base/json.hpp"

namespace modicum {

/// Reads the rope fields of config.json. `max_position_embeddings` stands in where
/// original_max_position_embeddings is absent.
RopeConfig parse_rope(const JsonFields& config, std::uint64_t max_position_embeddings);

}  // namespace modicum
