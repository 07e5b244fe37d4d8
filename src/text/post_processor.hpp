// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include <modicum/text/tokenizer.hpp>

#include "../base/json.hpp"

namespace modicum::text {

/// What the model and the added tokens made of a text, before special tokens are put around it.
struct Processed {
  std::string_view original;
  std::vector<TokenId> ids;
  std::vector<ByteRange> offsets;
  /// Of a place and its id: as in the vocabulary, but for an added token what it matched.
  std::function<std::string_view(std::size_t, TokenId)> token_text;
};

class PostProcessor {
 public:
  virtual ~PostProcessor() = default;
  virtual void trim(Processed&) const {}
  /// Ids to be put around, in order; `kText` marks the place of the text itself.
  virtual const std::vector<TokenId>* frame() const { return nullptr; }

  static constexpr TokenId kText = -1;
};

/// Reads the `post_processor` of a tokenizer.json: the steps in order, of which at most one has a frame.
/// Throws `Unsupported` naming a type that is not implemented.
std::vector<std::unique_ptr<const PostProcessor>> parse_post_processor(const Json& json);

}  // namespace modicum::text
