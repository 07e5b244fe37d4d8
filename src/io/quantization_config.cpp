// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>

#include <modicum/io/quantization_config.hpp>

#include "../base/quote.hpp"
#include "name_pattern.hpp"
#include "quantization_json.hpp"

namespace modicum {
namespace {

constexpr std::uint64_t kGroupStep = 32;
constexpr std::uint64_t kMaxGroup = std::uint64_t{1} << 24;
constexpr std::string_view kPattern = "re:";
constexpr std::string_view kLinear = "Linear";

enum class Match { none, type, pattern, name };

Match match_of(std::string_view target, std::string_view module) {
  if (target == module) return Match::name;
  if (target.starts_with(kPattern)) {
    return matches_pattern(target.substr(kPattern.size()), module).value_or(false) ? Match::pattern
                                                                                   : Match::none;
  }
  return target == kLinear ? Match::type : Match::none;
}

bool is_empty(const Json& value) {
  return value.is_null() || (value.is_structured() && value.empty()) || value == Json(false);
}

/// Refuses what is set and neither read nor known to change nothing.
void refuse_others(const JsonFields& fields, const Json& object, std::initializer_list<const char*> known) {
  for (const auto& [field, value] : object.items()) {
    if (is_empty(value) || std::find(known.begin(), known.end(), field) != known.end()) continue;
    fields.refuse<Unsupported>(field.c_str(), "no such field, or an empty one");
  }
}

IntegerFormat format_of(const JsonFields& fields) {
  const std::string format = fields.text("format");
  if (format == "pack-quantized") return IntegerFormat::packed;
  if (format == "int-quantized") return IntegerFormat::plain;
  fields.refuse<Unsupported>("format", "pack-quantized or int-quantized");
}

/// Strings that are exact names or patterns that `matches_pattern` knows.
std::vector<std::string> names_of(const JsonFields& fields, const char* field) {
  std::vector<std::string> names;
  if (!fields.has_value(field)) return names;
  if (!fields.at(field).is_array()) fields.refuse(field, "an array of names");
  for (const Json& value : fields.at(field)) {
    if (!value.is_string()) fields.refuse(field, "an array of names");
    const auto& name = value.get_ref<const std::string&>();
    if (name.starts_with(kPattern) && !matches_pattern(std::string_view(name).substr(kPattern.size()), {})) {
      fail<Unsupported>(
          {.op = fields.op(),
           .what = fields.name(field),
           .expected = "names, and patterns of characters, '.', '\\d', '*', '+', '?', '^' and '$'",
           .got = quote(name),
           .todo = "name the layers instead"});
    }
    names.push_back(name);
  }
  return names;
}

std::vector<std::string> targets_of(const JsonFields& fields) {
  std::vector<std::string> targets = names_of(fields, "targets");
  if (targets.empty()) fields.refuse("targets", "an array of at least one name");
  for (const std::string& target : targets) {
    const bool layer = target.find('.') != std::string::npos || target == "lm_head";
    if (layer || target == kLinear || target.starts_with(kPattern)) continue;
    fields.refuse<Unsupported>("targets", "Linear, names of layers, or re: and a pattern");
  }
  return targets;
}

/// Activations are rounded to int8 as they come: with a scale a token beside a scale a row of weights, else
/// by groups of 32 columns, which is finer.
void check_activations(const JsonFields& fields) {
  if (fields.text_or("type", "int") != "int") fields.refuse<Unsupported>("type", "int");
  if (fields.integer_or("num_bits", 8, 1, 64) != 8) fields.refuse<Unsupported>("num_bits", "8");
  if (!fields.has("dynamic") || fields.at("dynamic") != Json(true)) {
    fields.refuse<Unsupported>("dynamic", "true: scales that are found as activations come");
  }
  if (!fields.boolean_or("symmetric", true)) fields.refuse<Unsupported>("symmetric", "true");
}

std::size_t group_of(const JsonFields& fields) {
  const bool sized = fields.has_value("group_size") && fields.at("group_size") != Json(-1);
  const std::string strategy =
      fields.has_value("strategy") ? fields.text("strategy") : (sized ? "group" : "channel");
  if (strategy == "channel" && !sized) return 0;
  if (strategy != "group") fields.refuse<Unsupported>("strategy", "group or channel");
  const std::uint64_t group = fields.integer("group_size", 1, kMaxGroup);
  if (group % kGroupStep != 0) fields.refuse<Unsupported>("group_size", "a multiple of 32");
  return group;
}

void parse_weights(const JsonFields& fields, const Json& object, QuantizationScheme& scheme) {
  refuse_others(fields, object,
                {"num_bits", "type", "symmetric", "strategy", "group_size", "actorder", "observer",
                 "observer_kwargs", "scale_dtype", "zp_dtype"});
  if (fields.text_or("type", "int") != "int") fields.refuse<Unsupported>("type", "int");
  if (!fields.boolean_or("symmetric", true)) fields.refuse<Unsupported>("symmetric", "true");
  scheme.bits = fields.integer_or("num_bits", 8, 1, 64);
  const bool packed = scheme.format == IntegerFormat::packed;
  if (scheme.bits != 8 && !(packed && scheme.bits == 4)) {
    fields.refuse<Unsupported>("num_bits", packed ? "4 or 8" : "8, the only width that int-quantized has");
  }
  // "weight" orders columns while rounding and stores them as they were.
  const Json actorder = fields.has("actorder") ? fields.at("actorder") : Json();
  if (!is_empty(actorder) && actorder != "weight" && actorder != "static") {
    fields.refuse<Unsupported>("actorder", "null, weight or static: columns in their own order");
  }
  scheme.group = group_of(fields);
}

QuantizationScheme parse_scheme(const Json& json, const std::string& where, std::string_view op,
                                const JsonFields& all) {
  if (!json.is_object()) {
    fail<Unsupported>({.op = op, .what = where, .expected = "a scheme written out", .got = excerpt(json)});
  }
  const JsonFields fields(json, op, where + ".");
  refuse_others(fields, json, {"targets", "weights", "input_activations", "format"});
  QuantizationScheme scheme;
  scheme.format = format_of(fields.has_value("format") ? fields : all);
  scheme.targets = targets_of(fields);
  if (!fields.has_value("weights")) fields.refuse<Unsupported>("weights", "integers");
  parse_weights(JsonFields(fields.at("weights"), op, where + ".weights."), fields.at("weights"), scheme);
  if (fields.has_value("input_activations")) {
    check_activations(JsonFields(fields.at("input_activations"), op, where + ".input_activations."));
    scheme.token_activations = true;
  }
  return scheme;
}

}  // namespace

const QuantizationScheme* QuantizationConfig::scheme_of(std::string_view module) const {
  for (const std::string& name : ignore) {
    if (match_of(name, module) != Match::none) return nullptr;
  }
  const QuantizationScheme* best = nullptr;
  Match how = Match::none;
  for (const QuantizationScheme& scheme : schemes) {
    for (const std::string& target : scheme.targets) {
      const Match match = match_of(target, module);
      if (match <= how) continue;
      best = &scheme;
      how = match;
    }
  }
  return best;
}

QuantizationConfig parse_quantization(const Json& json, std::string_view op, const std::string& where) {
  const JsonFields fields(json, op, where + ".");
  if (fields.text_or("quant_method", "") != "compressed-tensors") {
    fields.refuse<Unsupported>("quant_method", "compressed-tensors",
                               "quantise the float model with modicum quantize");
  }
  refuse_others(fields, json,
                {"quant_method", "config_groups", "format", "ignore", "quantization_status", "version",
                 "sparsity_config", "global_compression_ratio", "run_compressed", "dequantize",
                 "use_optimized_inference"});
  if (fields.has_value("sparsity_config") && !is_empty(fields.at("sparsity_config"))) {
    const JsonFields sparsity(fields.at("sparsity_config"), op, where + ".sparsity_config.");
    if (sparsity.text_or("format", "") != "dense") sparsity.refuse<Unsupported>("format", "dense");
  }
  const std::string status = fields.text_or("quantization_status", "compressed");
  if (status != "compressed" && status != "frozen") {
    fields.refuse<Unsupported>("quantization_status", "compressed or frozen");
  }
  QuantizationConfig config;
  config.ignore = names_of(fields, "ignore");
  const Json& groups = fields.at("config_groups");
  if (!groups.is_object() || groups.empty()) fields.refuse("config_groups", "an object of schemes");
  for (const auto& [name, scheme] : groups.items()) {
    config.schemes.push_back(parse_scheme(scheme, where + ".config_groups." + name, op, fields));
  }
  return config;
}

}  // namespace modicum
