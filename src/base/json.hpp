// SPDX-License-Identifier: Apache-2.0
// Reading JSON that somebody else wrote: parsing with bounded depth, and typed fields whose errors name the
// field.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include <nlohmann/json.hpp>

#include <modicum/base/error.hpp>

namespace modicum {

using Json = nlohmann::json;

inline constexpr int kMaxJsonDepth = 100;

/// What nlohmann says, without its "[json.exception.…]" prefix.
inline std::string json_error_text(const Json::exception& error) {
  const std::string_view text = error.what();
  const std::size_t end = text.find("] ");
  return std::string(end == std::string_view::npos ? text : text.substr(end + 2));
}

/// Whether brackets open within each other more than `most` times. What is not JSON may count in any way.
inline bool nests_deeper(std::string_view text, int most) {
  int depth = 0;
  bool quoted = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quoted) {
      if (c == '\\') ++i;
      if (c == '"') quoted = false;
    } else if (c == '"') {
      quoted = true;
    } else if (c == '[' || c == '{') {
      if (++depth > most) return true;
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return false;
}

/// Parses `text`, called `name` in errors. Throws `FormatError` where it is not JSON or nested deeper than
/// `kMaxJsonDepth`. As in Python, the last of equal keys counts.
inline Json parse_json(std::string_view text, std::string_view op, const std::string& name) {
  // nlohmann takes a NUL for the end of the text, and would let anything follow it.
  if (text.find('\0') != std::string_view::npos) {
    fail<FormatError>({.op = op, .what = name, .expected = "JSON", .got = "a NUL byte"});
  }
  // Not by a callback of the parser, which then looks through an array again after each object in it.
  if (nests_deeper(text, kMaxJsonDepth)) {
    fail<FormatError>({.op = op,
                       .what = name,
                       .expected = "JSON nested at most " + std::to_string(kMaxJsonDepth) + " deep",
                       .got = "deeper nesting"});
  }
  try {
    return Json::parse(text);
  } catch (const Json::exception& error) {
    fail<FormatError>({.op = op, .what = name, .expected = "JSON", .got = json_error_text(error)});
  }
}

/// A short rendering of a value for an error message.
inline std::string excerpt(const Json& value) {
  if (value.is_array() && value.size() > 8) return "an array of " + std::to_string(value.size());
  if (value.is_object()) return "an object";
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 60) + "…";
  return text;
}

/// Typed access to the fields of one JSON object. Accessors with a default return it where the field is
/// absent; whatever is ill-typed or out of range throws `FormatError` naming the field.
class JsonFields {
 public:
  /// `where` precedes field names in errors: "config.json: rope_scaling.".
  JsonFields(const Json& object, std::string_view op, std::string where)
      : object_(object), op_(op), where_(std::move(where)) {
    if (!object.is_object()) {
      fail<FormatError>({.op = op_, .what = where_, .expected = "a JSON object", .got = excerpt(object)});
    }
  }

  /// Null is a value here.
  bool has(const char* field) const { return object_.contains(field); }
  bool has_value(const char* field) const { return has(field) && !object_.at(field).is_null(); }
  const Json& at(const char* field) const {
    if (!has(field))
      fail<FormatError>({.op = op_, .what = name(field), .expected = "a value", .got = "no such field"});
    return object_.at(field);
  }
  std::string name(const std::string& field) const { return where_ + field; }
  std::string_view op() const { return op_; }

  template <class E = FormatError>
  [[noreturn]] void refuse(const char* field, std::string expected, std::string todo = {}) const {
    fail<E>({.op = op_,
             .what = name(field),
             .expected = std::move(expected),
             .got = has(field) ? excerpt(object_.at(field)) : "no such field",
             .todo = std::move(todo)});
  }

  std::uint64_t integer(const char* field, std::uint64_t min, std::uint64_t max) const {
    const Json& value = at(field);
    if (!value.is_number_unsigned() || value.get<std::uint64_t>() < min || value.get<std::uint64_t>() > max) {
      refuse(field, "an integer from " + std::to_string(min) + " to " + std::to_string(max));
    }
    return value.get<std::uint64_t>();
  }
  std::uint64_t integer_or(const char* field, std::uint64_t fallback, std::uint64_t min,
                           std::uint64_t max) const {
    return has(field) ? integer(field, min, max) : fallback;
  }

  /// A finite number, integer or not, above `above` and at most `max`.
  double number(const char* field, double above, double max) const {
    const Json& value = at(field);
    if (!value.is_number() || !(value.get<double>() > above) || !(value.get<double>() <= max)) {
      refuse(field, "a number above " + shown(above) + ", at most " + shown(max));
    }
    return value.get<double>();
  }
  double number_or(const char* field, double fallback, double above, double max) const {
    return has(field) ? number(field, above, max) : fallback;
  }

  bool boolean_or(const char* field, bool fallback) const {
    if (!has(field)) return fallback;
    if (!object_.at(field).is_boolean()) refuse(field, "true or false");
    return object_.at(field).get<bool>();
  }

  /// For documents of our own, where a misspelt field would be a setting that is silently not there.
  void refuse_unknown(std::initializer_list<std::string_view> known) const {
    for (const auto& [field, value] : object_.items()) {
      if (std::find(known.begin(), known.end(), field) != known.end()) continue;
      fail<FormatError>(
          {.op = op_, .what = name(field), .expected = "a known field", .got = "an unknown one"});
    }
  }

  std::string text(const char* field) const {
    if (!at(field).is_string()) refuse(field, "a string");
    return object_.at(field).get<std::string>();
  }
  std::string text_or(const char* field, std::string fallback) const {
    return has(field) ? text(field) : std::move(fallback);
  }

 private:
  static std::string shown(double value) {
    Json json = value;
    return json.dump();
  }

  const Json& object_;
  std::string_view op_;
  std::string where_;
};

/// Values of an enumeration as JSON spells them.
template <class E, std::size_t N>
struct JsonNames {
  std::array<std::pair<E, const char*>, N> entries;

  const char* of(E value) const {
    for (const auto& [known, name] : entries) {
      if (known == value) return name;
    }
    return "";
  }
  E read(const JsonFields& fields, const char* field) const {
    const std::string text = fields.text(field);
    std::string all;
    for (const auto& [value, name] : entries) {
      if (text == name) return value;
      all += all.empty() ? name : std::string(", ") + name;
    }
    fields.refuse(field, "one of " + all);
  }
  E read(const JsonFields& fields, const char* field, E fallback) const {
    return fields.has(field) ? read(fields, field) : fallback;
  }
};

}  // namespace modicum
