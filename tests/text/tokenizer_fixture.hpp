// SPDX-License-Identifier: Apache-2.0
// Small tokenizers, written as the parts that a test is about.
#pragma once

#include <cstdio>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <modicum/text/tokenizer.hpp>

using namespace modicum;

/// Fields of a tokenizer.json as JSON; what is empty is left out.
struct Parts {
  std::string vocabulary = R"("<unk>":0,"a":1,"b":2,"ab":3,"c":4,"abc":5)";
  std::string merges = R"(["a","b"],["ab","c"])";
  std::string model_options = R"("unk_token":"<unk>")";
  std::string normalizer = {}, pre_tokenizer = {}, post_processor = {}, decoder = {}, added_tokens = {};
};

inline std::string json_of(const Parts& parts) {
  std::string json = R"({"version":"1.0")";
  const auto field = [&](std::string_view name, const std::string& value) {
    if (!value.empty()) json.append(",\"").append(name).append("\":").append(value);
  };
  field("normalizer", parts.normalizer);
  field("pre_tokenizer", parts.pre_tokenizer);
  field("post_processor", parts.post_processor);
  field("decoder", parts.decoder);
  if (!parts.added_tokens.empty()) json.append(",\"added_tokens\":[").append(parts.added_tokens).append("]");
  json.append(R"(,"model":{"type":"BPE","vocab":{)").append(parts.vocabulary).append("},\"merges\":[");
  json.append(parts.merges).append("]");
  if (!parts.model_options.empty()) json.append(",").append(parts.model_options);
  return json.append("}}");
}

inline Tokenizer make(const Parts& parts) {
  return Tokenizer::parse(json_of(parts));
}

/// The letters of all bytes as a vocabulary with ids 0 to 255, then `more`.
inline std::string letters(std::string_view more = "") {
  std::string vocabulary;
  for (int byte = 0, next = 0x100; byte < 256; ++byte) {
    const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    char entry[24];
    std::snprintf(entry, sizeof entry, "\"\\u%04x\":%d,", static_cast<unsigned>(printable ? byte : next++),
                  byte);
    vocabulary += entry;
  }
  if (more.empty()) vocabulary.pop_back();
  return vocabulary.append(more);
}

inline std::string added(std::string_view content, std::string_view flags = "") {
  const auto has = [&](char flag) { return flags.find(flag) != std::string_view::npos ? "true" : "false"; };
  std::string token = R"({"id":0,"content":")";
  token.append(content)
      .append(R"(","single_word":)")
      .append(has('w'))
      .append(R"(,"lstrip":)")
      .append(has('l'));
  token.append(R"(,"rstrip":)").append(has('r')).append(R"(,"normalized":)").append(has('n'));
  return token.append(R"(,"special":)").append(has('s')).append("}");
}

/// The texts that tokens stand for according to their offsets.
inline std::vector<std::string> covered(const Tokenizer& tokenizer, std::string_view text) {
  std::vector<std::string> parts;
  for (const ByteRange& range : tokenizer.encode(text).offsets) {
    parts.emplace_back(text.substr(range.begin, range.end - range.begin));
  }
  return parts;
}

using Ids = std::vector<TokenId>;
using Strings = std::vector<std::string>;
