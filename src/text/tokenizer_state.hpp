// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <modicum/text/tokenizer.hpp>

#include "added_tokens.hpp"
#include "bpe.hpp"
#include "decoder.hpp"
#include "normalizer.hpp"
#include "post_processor.hpp"
#include "pre_tokenizer.hpp"
#include "tokenizer_json.hpp"

namespace modicum {

struct Tokenizer::State {
  explicit State(text::TokenizerJson file, std::string fingerprint);

  std::optional<std::string_view> text_of(TokenId id) const;
  bool is_special(std::string_view token) const { return added.is_special(token); }
  void pre_tokenize(text::Pieces& pieces) const;
  text::Processed tokenize(std::string_view text, const text::Pieces& pieces) const;

  std::unique_ptr<const text::Normalizer> normalizer;
  text::PreTokenizerPlan pre_tokenizer;
  text::Bpe model;
  text::AddedTokens added;
  std::vector<std::unique_ptr<const text::PostProcessor>> post_processor;
  text::DecoderChain decoder;
  std::string fingerprint;
};

}  // namespace modicum
