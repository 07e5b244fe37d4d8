// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "../base/json.hpp"
#include "normalized_text.hpp"

namespace modicum::text {

/// A step that cuts pieces into smaller ones, and may rewrite them.
class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  /// Leaves added tokens alone and drops pieces that become empty.
  virtual void apply(Pieces& pieces) const = 0;
};

struct PreTokenizerPlan {
  std::unique_ptr<const PreTokenizer> steps;  ///< may be null
  /// The last step, which is not among `steps`, writes every byte as a letter. It is left to the model, which
  /// can take bytes as they are.
  bool ends_in_bytes = false;
};

/// Reads the `pre_tokenizer` of a tokenizer.json. Throws `Unsupported` naming a type that is not implemented.
PreTokenizerPlan parse_pre_tokenizer(const Json& json);

/// Writes every byte of the pieces as a letter, as the ByteLevel pre-tokenizer does.
void bytes_to_letters(Pieces& pieces);

}  // namespace modicum::text
