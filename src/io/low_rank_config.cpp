// SPDX-License-Identifier: Apache-2.0
#include <cstdint>

#include "../base/quote.hpp"
#include "low_rank_json.hpp"
#include "name_pattern.hpp"

namespace modicum {
namespace {

constexpr std::uint64_t kMaxRank = std::uint64_t{1} << 24;
constexpr std::string_view kPattern = "re:";

}  // namespace

std::size_t LowRankConfig::rank_of(std::string_view module) const {
  for (const Target& target : modules) {
    if (target.module == module) return target.rank;
  }
  for (const Target& target : modules) {
    const std::string_view name = target.module;
    if (name.starts_with(kPattern) && matches_pattern(name.substr(kPattern.size()), module).value_or(false)) {
      return target.rank;
    }
  }
  return 0;
}

LowRankConfig parse_low_rank(const Json& section, std::string_view op, const std::string& where) {
  const JsonFields fields(section, op, where + ".");
  for (const auto& [field, value] : section.items()) {
    if (field != "modules") fields.refuse(field.c_str(), "no such field");
  }
  const Json& modules = fields.at("modules");
  const JsonFields targets(modules, op, where + ".modules.");
  if (modules.empty()) fields.refuse("modules", "at least one layer with its rank");
  LowRankConfig config;
  for (const auto& [name, rank] : modules.items()) {
    const bool pattern = name.starts_with(kPattern);
    if (pattern && !matches_pattern(std::string_view(name).substr(kPattern.size()), {})) {
      fail<Unsupported>(
          {.op = op,
           .what = targets.name(quote(name)),
           .expected = "a name, or a pattern of characters, '.', '\\d', '*', '+', '?', '^' and '$'",
           .got = "another pattern",
           .todo = "name the layers instead"});
    }
    config.modules.push_back({.module = name, .rank = targets.integer(name.c_str(), 1, kMaxRank)});
  }
  return config;
}

}  // namespace modicum
