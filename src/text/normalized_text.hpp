// SPDX-License-Identifier: Apache-2.0
// Text on its way through normalizers and pre-tokenizers, which remembers where each byte came from.
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <modicum/text/tokenizer.hpp>

#include "unicode.hpp"

namespace modicum::text {

/// Bytes of the original text.
struct Span {
  std::uint32_t begin = 0, end = 0;
};

/// A part of the original text, as it stands or rewritten. In rewritten text every byte has the span of the
/// original that it stands for; an untouched part needs no such list.
class NormalizedText {
 public:
  /// The untouched part of an original that begins at `offset`. `part` must outlive this object until it is
  /// rewritten.
  NormalizedText(std::string_view part, std::size_t offset)
      : part_(part), offset_(static_cast<std::uint32_t>(offset)) {}

  std::string_view text() const { return rewritten_ ? std::string_view(own_) : part_; }
  bool empty() const { return text().empty(); }
  /// The empty span where the part of the original begins.
  Span origin() const { return {offset_, offset_}; }

  /// What the character that byte `at` belongs to stands for.
  Span span(std::size_t at) const { return rewritten_ ? spans_[at] : untouched_span(at, at + 1); }
  /// What the bytes from `begin` to `end`, at least one, stand for.
  Span span(std::size_t begin, std::size_t end) const {
    return rewritten_ ? Span{spans_[begin].begin, spans_[end - 1].end} : untouched_span(begin, end);
  }

  void rewrite(std::string text, std::vector<Span> spans);
  /// Puts code points in the place of the present ones, in the sense of `Change`.
  void transform(std::span<const Change> changes);
  void keep(std::size_t begin, std::size_t end);
  /// Puts `prefix` before the text, standing for its first character. Does nothing to empty text.
  void prepend(std::string_view prefix);

  /// The bytes from `begin` to `end` as a text of their own, which borrows from an untouched one.
  NormalizedText slice(std::size_t begin, std::size_t end) const;

 private:
  Span untouched_span(std::size_t begin, std::size_t end) const {
    while (begin > 0 && is_continuation(part_[begin])) --begin;
    while (end < part_.size() && is_continuation(part_[end])) ++end;
    return {offset_ + static_cast<std::uint32_t>(begin), offset_ + static_cast<std::uint32_t>(end)};
  }

  std::string_view part_;
  std::uint32_t offset_;
  bool rewritten_ = false;
  std::string own_;
  std::vector<Span> spans_;
};

/// A stretch of one of the texts: what the model tokenizes as a unit, or an added token.
struct Piece {
  static constexpr TokenId kNone = -1;
  const NormalizedText* source;
  std::uint32_t begin, end;
  TokenId added = kNone;

  std::string_view text() const { return source->text().substr(begin, end - begin); }
};

/// The pieces that a text has been cut into so far, and the texts that they are pieces of.
struct Pieces {
  std::deque<NormalizedText> texts;  ///< a deque: pieces point into it
  std::vector<Piece> list;

  const NormalizedText* hold(NormalizedText text) { return &texts.emplace_back(std::move(text)); }
};

}  // namespace modicum::text
