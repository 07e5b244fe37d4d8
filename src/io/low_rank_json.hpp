// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <modicum/io/low_rank_config.hpp>

#include "../base/json.hpp"

namespace modicum {

/// Reads config.json's low_rank section, called `where` in errors: {"modules": {name or re: pattern: rank}}.
/// Throws `FormatError` for anything else, `Unsupported` for a pattern that is not understood.
LowRankConfig parse_low_rank(const Json& section, std::string_view op, const std::string& where);

}  // namespace modicum
