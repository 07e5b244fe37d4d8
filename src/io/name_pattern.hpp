// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string_view>

namespace modicum {

/// Whether `name` begins with a match of `pattern` (Python's re.match), for the part of regular expressions
/// that lists of layers use: characters, escaped punctuation, `.` and `\d`, each once or followed by `*`, `+`
/// or
/// `?`; `^` in front; `$` at the end. Empty where the pattern has anything else. Takes time in proportion to
/// the product of both lengths, whatever the pattern.
std::optional<bool> matches_pattern(std::string_view pattern, std::string_view name);

}  // namespace modicum
