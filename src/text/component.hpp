// SPDX-License-Identifier: Apache-2.0
// What the parts of a tokenizer.json have in common: an object with a `type`.
#pragma once

#include <string>
#include <string_view>

#include <modicum/base/error.hpp>

#include "../base/json.hpp"
#include "../base/quote.hpp"
#include "normalized_text.hpp"
#include "pattern.hpp"

namespace modicum::text {

inline constexpr int kMaxComponentDepth = 16;

class Component {
 public:
  /// `kind` is the field that holds it: "normalizer", "decoder", …
  Component(const Json& json, std::string_view kind, int depth)
      : kind_(kind), fields_(json, "tokenizer.load", kind_ + ".") {
    if (depth > kMaxComponentDepth) fields_.refuse<Unsupported>("type", "sequences nested less deeply");
    type_ = fields_.text("type");
  }

  const std::string& type() const { return type_; }
  const JsonFields& fields() const { return fields_; }
  [[noreturn]] void unsupported() const {
    fail<Unsupported>({.op = "tokenizer.load", .what = kind_ + " " + quote(type_) + " is not implemented"});
  }

  bool flag(const char* field) const {
    fields_.at(field);
    return fields_.boolean_or(field, false);
  }
  const Json& list(const char* field) const {
    if (!fields_.at(field).is_array()) fields_.refuse(field, "an array");
    return fields_.at(field);
  }
  Pattern pattern() const { return Pattern::parse(fields_.at("pattern"), fields_.name("pattern")); }
  /// A string of exactly one code point.
  std::string character(const char* field) const {
    std::string text = fields_.text(field);
    if (count_code_points(text) != 1) fields_.refuse(field, "one character");
    return text;
  }

 private:
  std::string kind_;
  JsonFields fields_;
  std::string type_;
};

/// Puts `content` in the place of every match.
void replace(NormalizedText& text, const Pattern& pattern, std::string_view content);

/// The letters that byte-level tokenizers write for bytes (GPT-2's bytes_to_unicode), and back.
char32_t letter_of_byte(unsigned char byte);
/// -1 for a code point that stands for no byte.
int byte_of_letter(char32_t letter);

}  // namespace modicum::text
