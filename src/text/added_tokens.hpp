// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "../base/json.hpp"
#include "normalized_text.hpp"
#include "normalizer.hpp"
#include "vocabulary.hpp"

namespace modicum::text {

/// Finds the longest of a set of strings at every place.
class StringSet {
 public:
  void add(std::string_view text, TokenId value);
  bool empty() const { return nodes_.size() == 1; }
  /// The leftmost occurrence that begins at `from` or later, the longest of those; false where there is none.
  bool find(std::string_view text, std::size_t from, std::size_t& begin, std::size_t& end,
            TokenId& value) const;

 private:
  struct Node {
    TokenId value = Piece::kNone;
    std::map<unsigned char, std::uint32_t> next;
  };
  std::vector<Node> nodes_ = std::vector<Node>(1);
  bool begins_[256] = {};
};

/// Tokens that are looked for in the text itself, before the model sees it.
class AddedTokens {
 public:
  /// Reads `added_tokens`. As in `tokenizers`, a token has the id that the model's vocabulary gives it,
  /// otherwise the next free one, whatever the file says.
  AddedTokens(const Json& json, const Vocabulary& vocabulary, const Normalizer* normalizer);

  /// Cuts tokens out of the text, normalizes what is left and cuts out of that the tokens that are normalized
  /// themselves.
  void extract(Pieces& pieces, const Normalizer* normalizer) const;

  std::optional<TokenId> find(std::string_view content) const;
  /// The text for decoding: normalized, where the token is.
  std::optional<std::string_view> text(TokenId id) const;
  bool is_special(std::string_view text) const { return special_.contains(std::string(text)); }
  const std::unordered_map<std::string, TokenId>& ids() const { return ids_; }

 private:
  struct Token {
    std::string content, normal;
    bool single_word, lstrip, rstrip, normalized, special;
  };
  static Token parse(const Json& json, const Normalizer* normalizer);
  void cut(const NormalizedText* source, const StringSet& set, std::vector<Piece>& out) const;
  std::vector<Piece> matches(const NormalizedText* source, const StringSet& set) const;

  std::unordered_map<std::string, TokenId> ids_;
  std::unordered_map<TokenId, Token> tokens_;
  std::unordered_map<TokenId, std::string> written_;  ///< where a token is written otherwise than its content
  std::unordered_set<std::string> special_;
  StringSet plain_, normalized_;
};

}  // namespace modicum::text
