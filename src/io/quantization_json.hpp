// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

#include <modicum/io/quantization_config.hpp>

#include "../base/json.hpp"

namespace modicum {

/// Parses the value of quantization_config, called `where` in errors. Throws `FormatError` for ill-typed
/// fields, `Unsupported` for everything but symmetric integers of 4 or 8 bits by groups or rows: each names
/// the field and what would be accepted.
QuantizationConfig parse_quantization(const Json& json, std::string_view op, const std::string& where);

}  // namespace modicum
