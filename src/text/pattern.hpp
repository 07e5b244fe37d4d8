// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "../base/json.hpp"

namespace modicum::text {

struct Match {
  std::size_t begin, end;
  bool matched;
};

/// What Split and Replace look for: a fixed string or a regular expression.
class Pattern {
 public:
  static Pattern literal(std::string text);
  /// Throws `Unsupported` or `FormatError`.
  static Pattern regex(std::string_view pattern);
  /// Reads {"String": …} or {"Regex": …}.
  static Pattern parse(const Json& json, const std::string& where);

  /// Cuts `text` into matches and what lies between them, in order and without gaps.
  void find(std::string_view text, std::vector<Match>& out) const;

 private:
  struct Regex;
  std::string literal_;
  std::shared_ptr<const Regex> regex_;
};

}  // namespace modicum::text
