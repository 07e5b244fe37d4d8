// SPDX-License-Identifier: Apache-2.0
// From tokens back to text, as a chain of stages through which tokens flow one by one. A whole text and a
// stream take the same way, so they cannot differ.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../base/json.hpp"

namespace modicum::text {

/// Takes tokens in parts: any number of `text`, then `end_token`, and `finish` after the last token.
class DecodeSink {
 public:
  virtual ~DecodeSink() = default;
  virtual void text(std::string_view part) = 0;
  virtual void end_token() = 0;
  virtual void finish() = 0;
};

/// The description of one decoder; `start` makes a stage that passes on to `next`.
class Decoder {
 public:
  virtual ~Decoder() = default;
  virtual std::unique_ptr<DecodeSink> start(DecodeSink& next) const = 0;
};

using DecoderChain = std::vector<std::unique_ptr<const Decoder>>;

/// Reads the `decoder` of a tokenizer.json; for null the tokens are joined by spaces. Throws `Unsupported`
/// naming a type that is not implemented.
DecoderChain parse_decoder(const Json& json);

/// The bytes that `token` adds to a text, in the midst of it.
std::string token_bytes(const DecoderChain& chain, std::string_view token);

/// A run of a chain: feed it tokens, take the text that has become certain.
class Decoding {
 public:
  explicit Decoding(const DecoderChain& chain);
  Decoding(const Decoding&) = delete;  // stages point at each other
  Decoding& operator=(const Decoding&) = delete;

  void push(std::string_view token) {
    first().text(token);
    first().end_token();
  }
  void finish() { first().finish(); }
  std::string take() { return std::exchange(out_.collected, {}); }

 private:
  struct Out : DecodeSink {
    std::string collected;
    void text(std::string_view part) override { collected += part; }
    void end_token() override {}
    void finish() override {}
  };
  DecodeSink& first() { return stages_.empty() ? out_ : *stages_.back(); }

  Out out_;
  std::vector<std::unique_ptr<DecodeSink>> stages_;  ///< the last of the chain first
};

}  // namespace modicum::text
