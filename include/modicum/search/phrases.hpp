// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <modicum/search/constraint.hpp>
#include <modicum/text/tokenizer.hpp>

namespace modicum {

/// What a text must not and must contain, as text: however it is cut into tokens.
struct PhraseOptions {
  std::vector<std::string> banned;    ///< UTF-8; anywhere in the new text, within words too
  std::vector<std::string> required;  ///< at most 32; in any order, overlapping or not
  bool ignore_case = false;           ///< of ASCII letters
};

/// Banned and required phrases, found by one automaton over the bytes of the text (Aho & Corasick, "Efficient
/// string matching", 1975): a state is a place in it and which phrases were met. Required ones are driven
/// towards by dynamic beam allocation (Post & Vilar 2018, arXiv:1804.06609), so they need several beams.
class Phrases : public Constraint {
 public:
  /// `vocabulary`: the model's. Looks at each token of the tokenizer once. Throws `InvalidArgument` for an
  /// empty phrase, no phrase at all, and more than 32 required ones.
  Phrases(const Tokenizer& tokenizer, std::size_t vocabulary, PhraseOptions options);

  State root() const override { return 0; }
  AllowedTokens allowed(State state, AllowedScratch& scratch) const override;
  State advance(State state, TokenId token) const override;
  bool allows(State state, TokenId token) const override;
  Ending ending(State state) const override { return met(state) == all_met_ ? Ending::may : Ending::no; }
  std::size_t progress(State state) const override;
  std::size_t required() const override { return units_; }

 private:
  using Node = std::uint32_t;
  struct NodeInfo {
    Node suffix = 0;          ///< the longest proper suffix of this text that begins a phrase
    std::uint32_t depth = 0;  ///< bytes
    bool is_banned = false;   ///< a banned phrase ends here
    std::uint32_t met = 0;    ///< required phrases that end here, a bit each
  };
  /// A required phrase: what leads on in it, by how many of its bytes are there.
  struct Required {
    std::vector<Node> path;                    ///< [bytes + 1]
    std::vector<std::vector<TokenId>> wanted;  ///< [bytes]
    std::vector<std::size_t> units;            ///< [bytes] tokens of it that are there
    std::size_t total = 1;                     ///< tokens
  };

  static std::uint32_t met(State state) noexcept { return static_cast<std::uint32_t>(state >> 32); }
  static Node node(State state) noexcept { return static_cast<Node>(state); }
  std::string_view bytes(TokenId token) const;
  std::string folded(std::string_view text) const;
  Node add(std::string_view phrase, std::vector<Node>* path);
  void link();
  void read_vocabulary(const Tokenizer& tokenizer, std::size_t vocabulary);
  void plan(const Tokenizer& tokenizer, Required& required, const std::string& phrase) const;
  void plan_tokens(const Tokenizer& tokenizer, Required& required, const std::string& phrase,
                   const std::string& text) const;
  std::size_t matched(const Required& required, Node at) const;

  PhraseOptions options_;
  std::vector<NodeInfo> nodes_;
  std::vector<Node> next_;  ///< [nodes, 256]
  std::vector<Required> required_;
  std::uint32_t all_met_ = 0;
  std::size_t units_ = 0;
  std::string token_bytes_;                 ///< of all tokens, one after another
  std::vector<std::size_t> token_offsets_;  ///< [vocabulary + 1]
};

}  // namespace modicum
