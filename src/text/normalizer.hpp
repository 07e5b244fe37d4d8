// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "../base/json.hpp"
#include "normalized_text.hpp"

namespace modicum::text {

/// A step that rewrites text before it is cut up.
class Normalizer {
 public:
  virtual ~Normalizer() = default;
  virtual void apply(NormalizedText& text) const = 0;
};

/// Reads the `normalizer` of a tokenizer.json; nothing for null. Throws `Unsupported` naming a type that is
/// not implemented.
std::unique_ptr<const Normalizer> parse_normalizer(const Json& json);

}  // namespace modicum::text
