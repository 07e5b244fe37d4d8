// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

namespace modicum {

/// 'text', for error messages. Not `"'" + std::string(text) + "'"`: GCC 12 warns of an overlap there that is
/// none (its bug 105651).
inline std::string quote(std::string_view text) {
  std::string result(1, '\'');
  result += text;
  result += '\'';
  return result;
}

}  // namespace modicum
