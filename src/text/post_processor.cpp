// SPDX-License-Identifier: Apache-2.0
#include "post_processor.hpp"

#include <algorithm>
#include <limits>
#include <utility>

#include "component.hpp"
#include "unicode.hpp"

namespace modicum::text {
namespace {

using Steps = std::vector<std::unique_ptr<const PostProcessor>>;

bool is_space(char32_t c) {
  return c == letter_of_byte(' ') || has_flag(c, kWhiteSpace);
}

std::size_t leading_spaces(std::string_view token) {
  std::size_t count = 0;
  for (std::size_t at = 0; at < token.size() && is_space(next_code_point(token, at));) ++count;
  return count;
}

std::size_t trailing_spaces(std::string_view token) {
  std::size_t count = 0;
  while (!token.empty()) {
    const char32_t last = last_code_point(token);
    if (!is_space(last)) break;
    token.remove_suffix(utf8_length(last));
    ++count;
  }
  return count;
}

/// Takes white space off the offsets, a character of the original for each white space of the token.
class TrimStep : public PostProcessor {
 public:
  TrimStep(bool trims, bool add_prefix_space) : trims_(trims), add_prefix_space_(add_prefix_space) {}
  void trim(Processed& text) const override {
    for (std::size_t i = 0; trims_ && i < text.ids.size(); ++i) trim(text, i);
  }

 private:
  void trim(Processed& text, std::size_t i) const {
    const std::string_view token = text.token_text(i, text.ids[i]);
    ByteRange& range = text.offsets[i];
    std::size_t leading = leading_spaces(token);
    const std::size_t trailing = trailing_spaces(token);
    // One space before the first word is the one that was added, not one of the text.
    if (leading == 1 && add_prefix_space_ && (i == 0 || range.begin == 0)) leading = 0;
    for (; leading > 0 && range.begin < range.end; --leading) {
      range.begin = std::min(range.end, range.begin + utf8_length_at(text.original, range.begin));
    }
    // `tokenizers` leaves a token alone that ends too early in the text to lose that many.
    if (count_code_points(text.original.substr(0, std::min(range.end, trailing * 4))) < trailing) return;
    for (std::size_t n = trailing; n > 0 && range.end > range.begin; --n) {
      do --range.end;
      while (range.end > range.begin && is_continuation(text.original[range.end]));
    }
  }

  bool trims_, add_prefix_space_;
};

class FrameStep : public PostProcessor {
 public:
  explicit FrameStep(std::vector<TokenId> frame) : frame_(std::move(frame)) {}
  const std::vector<TokenId>* frame() const override { return &frame_; }

 private:
  std::vector<TokenId> frame_;
};

TokenId token_id(const Json& json, const JsonFields& fields, const char* field) {
  constexpr auto kMost = static_cast<std::uint64_t>(std::numeric_limits<TokenId>::max());
  if (!json.is_number_unsigned() || json.get<std::uint64_t>() > kMost) fields.refuse(field, "ids of tokens");
  return json.get<TokenId>();
}

/// ["<s>", 0]
TokenId marker(const JsonFields& fields, const char* field) {
  const Json& pair = fields.at(field);
  if (!pair.is_array() || pair.size() != 2 || !pair[0].is_string())
    fields.refuse(field, "a token and its id");
  return token_id(pair[1], fields, field);
}

void append_special(const Component& part, const std::string& name, std::vector<TokenId>& frame) {
  const JsonFields tokens(part.fields().at("special_tokens"), "tokenizer.load",
                          "post_processor.special_tokens.");
  const JsonFields token(tokens.at(name.c_str()), "tokenizer.load", tokens.name(name) + ".");
  if (!token.at("ids").is_array()) token.refuse("ids", "an array");
  for (const Json& id : token.at("ids")) frame.push_back(token_id(id, token, "ids"));
}

std::unique_ptr<const PostProcessor> parse_template(const Component& part) {
  std::vector<TokenId> frame;
  for (const Json& piece : part.list("single")) {
    const JsonFields kinds(piece, "tokenizer.load", "post_processor.single.");
    if (kinds.has("SpecialToken")) {
      append_special(part, JsonFields(kinds.at("SpecialToken"), "tokenizer.load", "SpecialToken.").text("id"),
                     frame);
    } else {
      const JsonFields sequence(kinds.at("Sequence"), "tokenizer.load", "Sequence.");
      if (sequence.text("id") != "A") sequence.refuse("id", "A, the only sequence of a single text");
      frame.push_back(PostProcessor::kText);
    }
  }
  return std::make_unique<FrameStep>(std::move(frame));
}

void parse(const Json& json, int depth, Steps& steps) {
  const Component part(json, "post_processor", depth);
  const JsonFields& fields = part.fields();
  const std::string& type = part.type();
  if (type == "Sequence") {
    for (const Json& step : part.list("processors")) parse(step, depth + 1, steps);
  } else if (type == "ByteLevel") {
    steps.push_back(std::make_unique<TrimStep>(part.flag("trim_offsets"), part.flag("add_prefix_space")));
  } else if (type == "TemplateProcessing") {
    steps.push_back(parse_template(part));
  } else if (type == "RobertaProcessing" || type == "BertProcessing") {
    if (type == "RobertaProcessing") {
      steps.push_back(std::make_unique<TrimStep>(part.flag("trim_offsets"), part.flag("add_prefix_space")));
    }
    steps.push_back(std::make_unique<FrameStep>(
        std::vector<TokenId>{marker(fields, "cls"), PostProcessor::kText, marker(fields, "sep")}));
  } else {
    part.unsupported();
  }
}

}  // namespace

Steps parse_post_processor(const Json& json) {
  Steps steps;
  if (json.is_null()) return steps;
  parse(json, 0, steps);
  if (std::count_if(steps.begin(), steps.end(), [](const auto& step) { return step->frame() != nullptr; }) >
      1) {
    fail<Unsupported>({.op = "tokenizer.load", .what = "more than one post_processor that adds tokens"});
  }
  return steps;
}

}  // namespace modicum::text
