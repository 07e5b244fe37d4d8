// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include <modicum/text/tokenizer.hpp>

namespace modicum {

/// What may follow in one state of a constraint. The spans belong to the constraint or to the scratch space
/// that it was given.
struct AllowedTokens {
  enum class Kind : std::uint8_t {
    all,    ///< every token
    only,   ///< `tokens`
    mask,   ///< token i where bit i % 32 of mask[i / 32] is set; beyond its end, none
    check,  ///< those for which `Constraint::allows` is true, asked only of tokens that could be chosen
  };
  Kind kind = Kind::all;
  std::span<const TokenId> tokens = {};      ///< ascending, without repetition
  std::span<const std::uint32_t> mask = {};  ///< ceil(vocabulary / 32) words, or fewer
  /// Whether the text may end here. Stop tokens are then allowed whatever `kind` says; otherwise they are
  /// only where `tokens` or `mask` names them.
  bool may_end = true;
  /// Tokens that lead to something the text must contain; the search keeps beams for them. Ascending, all of
  /// them allowed.
  std::span<const TokenId> wanted = {};
};

/// Space for `AllowedTokens` that a constraint does not hold ready.
struct AllowedScratch {
  std::vector<TokenId> tokens;
  std::vector<TokenId> wanted;
  std::vector<std::uint32_t> mask;
};

/// Which texts a search may write, as an automaton over tokens: a set of entries (`Lexicon`), a grammar,
/// phrases. Each beam carries a state, so that a fork costs a copy of a number, whatever was written before.
/// The root is the state before the first new token.
///
/// A state stays good until it is released as often as `root` and `advance` gave it. Const members may be
/// called from several threads unless a class says otherwise; `mutable` pools lock.
class Constraint {
 public:
  using State = std::uint64_t;

  virtual ~Constraint() = default;

  virtual State root() const = 0;

  /// What may follow. `scratch` may be overwritten and must live as long as the result is used.
  virtual AllowedTokens allowed(State state, AllowedScratch& scratch) const = 0;

  /// The state after `token`, which `allowed` let through.
  virtual State advance(State state, TokenId token) const = 0;

  /// Whether a text may end in a state, and whether it must.
  enum class Ending : std::uint8_t { no, may, must };
  virtual Ending ending(State state) const {
    AllowedScratch scratch;
    const AllowedTokens next = allowed(state, scratch);
    const bool goes_on = next.kind == AllowedTokens::Kind::only   ? !next.tokens.empty()
                         : next.kind == AllowedTokens::Kind::mask ? !std::ranges::all_of(next.mask, is_zero)
                                                                  : true;
    return !next.may_end ? Ending::no : goes_on ? Ending::may : Ending::must;
  }

  /// Whether a text that may end does end, as an entry of a set does, where the search has no stop tokens. It
  /// also goes on where more may follow.
  virtual bool ends_by_itself() const { return false; }

  /// Whether `token` may follow, where `allowed` said `check`.
  virtual bool allows(State, TokenId) const { return true; }

  /// How much of what the text must contain it does contain, 0 to `required`: beams compete with those that
  /// have come as far.
  virtual std::size_t progress(State) const { return 0; }
  virtual std::size_t required() const { return 0; }

  virtual void release(State) const noexcept {}

  /// Of the tokenizer whose ids it speaks of; empty: of any.
  virtual std::string_view tokenizer_fingerprint() const { return {}; }

 private:
  static bool is_zero(std::uint32_t word) { return word == 0; }
};

/// Whether `token` is among those that `allowed` names. `check` counts as allowed.
inline bool contains(const AllowedTokens& allowed, TokenId token) {
  switch (allowed.kind) {
    case AllowedTokens::Kind::only:
      return std::ranges::binary_search(allowed.tokens, token);
    case AllowedTokens::Kind::mask: {
      const auto i = static_cast<std::size_t>(token);
      return i / 32 < allowed.mask.size() && ((allowed.mask[i / 32] >> (i % 32)) & 1u) != 0;
    }
    case AllowedTokens::Kind::all:
    case AllowedTokens::Kind::check:
      break;
  }
  return true;
}

}  // namespace modicum
