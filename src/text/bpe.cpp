// SPDX-License-Identifier: Apache-2.0
#include "bpe.hpp"

#include <algorithm>
#include <bit>
#include <functional>
#include <limits>

#include <modicum/base/error.hpp>
#include <modicum/base/hash.hpp>

#include "../base/quote.hpp"
#include "component.hpp"
#include "unicode.hpp"

namespace modicum::text {
namespace {

constexpr char32_t kDirect = 0x3000;
constexpr std::size_t kLongestScan = 48;  // symbols; beyond, a queue is faster than looking at all pairs
constexpr std::size_t kLongestWord =
    48;  // bytes of a piece that is not worth cutting, and of a remembered word
constexpr std::uint32_t kNoRank = std::numeric_limits<std::uint32_t>::max();

std::uint64_t pair_key(std::uint32_t first, std::uint32_t second) {
  return std::uint64_t{first} << 32 | second;
}

std::string byte_token(int byte) {
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  return std::string("<0x") + kDigits[static_cast<std::size_t>(byte >> 4)] +
         kDigits[static_cast<std::size_t>(byte & 15)] + ">";
}

char32_t first_code_point(std::string_view text) {
  std::size_t at = 0;
  return next_code_point(text, at);
}

}  // namespace

Bpe::Bpe(Vocabulary vocabulary, BpeOptions options)
    : vocabulary_(std::move(vocabulary)), options_(std::move(options)), byte_joints_(1 << 16) {
  if (options_.unk_token) unk_ = vocabulary_.find(*options_.unk_token);
  takes_bytes_ = options_.continuing_subword_prefix.empty() && options_.end_of_word_suffix.empty();
  may_cut_ = takes_bytes_ && !vocabulary_.find("");
  for (int b = 0; b < 256; ++b) {
    const auto i = static_cast<std::size_t>(b);
    fallback_[i] = vocabulary_.find(byte_token(b)).value_or(-1);
    std::string letter;
    append_utf8(letter, letter_of_byte(static_cast<unsigned char>(b)));
    letters_[i] = vocabulary_.find(letter).value_or(-1);
    takes_bytes_ = takes_bytes_ && letters_[i] >= 0;
  }
  characters_.resize(kDirect);
  std::string character;
  for (char32_t c = 0; c < kDirect; ++c) {
    character.clear();
    append_utf8(character, c);
    characters_[c] = vocabulary_.find(character).value_or(-1);
  }
}

TokenId Bpe::id_of_code_point(char32_t c) const {
  if (c < kDirect) return characters_[c];
  std::string character;
  append_utf8(character, c);
  return vocabulary_.find(character).value_or(-1);
}

void Bpe::add_merge(std::string_view left, std::string_view right) {
  const auto known = [&](std::string_view token) {
    const auto id = vocabulary_.find(token);
    if (!id) {
      fail<FormatError>({.op = "tokenizer.load",
                         .what = "merge " + quote(left) + " " + quote(right),
                         .expected = "tokens of the vocabulary",
                         .got = quote(token)});
    }
    return *id;
  };
  const TokenId left_id = known(left), right_id = known(right);
  // The second half of the joined token carries no mark of its own.
  const std::size_t mark = options_.continuing_subword_prefix.size();
  if (right.size() < mark || (right.size() > mark && is_continuation(right[mark]))) {
    fail<FormatError>({.op = "tokenizer.load",
                       .what = "right side of the merge " + quote(left) + " " + quote(right),
                       .expected = "a token that begins with " + quote(options_.continuing_subword_prefix)});
  }
  std::string joined(left);
  joined += right.substr(mark);
  const TokenId joined_id = known(joined);
  merges_.insert_or_assign(
      pair_key(static_cast<std::uint32_t>(left_id), static_cast<std::uint32_t>(right_id)),
      {merge_count_++, joined_id});
  const auto is_fallback = [&](TokenId id) {
    return std::find(fallback_.begin(), fallback_.end(), id) != fallback_.end();
  };
  // What stands for an unknown character is not spelt as the text is, so nothing can be said about where it
  // joins.
  const auto stands_for_unknown = [&](std::string_view token, TokenId id) {
    return (unk_ && id == *unk_) || (token.size() == 6 && token.starts_with("<0x") && is_fallback(id));
  };
  may_cut_ = may_cut_ && !stands_for_unknown(left, left_id) && !stands_for_unknown(right, right_id);
  learn_joints(left, right);
}

void Bpe::learn_joints(std::string_view left, std::string_view right) {
  if (left.empty() || right.empty()) return;
  const char32_t before = last_code_point(left), after = first_code_point(right);
  joints_.insert_or_assign(pair_key(before, after), 1);
  const int before_byte = byte_of_letter(before), after_byte = byte_of_letter(after);
  if (before_byte >= 0 && after_byte >= 0)
    byte_joints_[static_cast<std::size_t>(before_byte << 8 | after_byte)] = true;
}

bool Bpe::whole_word(std::string_view piece, bool bytes, Session& session) const {
  std::string_view spelling = piece;
  if (bytes) {
    session.letters_.clear();
    for (const char byte : piece)
      append_utf8(session.letters_, letter_of_byte(static_cast<unsigned char>(byte)));
    spelling = session.letters_;
  }
  const auto id = vocabulary_.find(spelling);
  if (id) session.tokens.push_back({*id, static_cast<std::uint32_t>(piece.size())});
  return id.has_value();
}

void Bpe::encode(std::string_view piece, Session& session) const {
  if (piece.empty() || (options_.ignore_merges && whole_word(piece, false, session))) return;
  for (std::size_t begin = 0; begin < piece.size();) {
    const std::size_t end = segment_end(piece, begin, false);
    encode_segment(piece.substr(begin, end - begin), false, session);
    begin = end;
  }
}

void Bpe::encode_bytes(std::string_view piece, Session& session) const {
  if (piece.empty() || (options_.ignore_merges && whole_word(piece, true, session))) return;
  for (std::size_t begin = 0; begin < piece.size();) {
    const std::size_t end = segment_end(piece, begin, true);
    encode_segment(piece.substr(begin, end - begin), true, session);
    begin = end;
  }
}

std::size_t Bpe::segment_end(std::string_view piece, std::size_t begin, bool bytes) const {
  if (!may_cut_ || piece.size() - begin <= kLongestWord / 2) return piece.size();
  if (bytes) {
    for (std::size_t at = begin + 1; at < piece.size(); ++at) {
      const auto before = static_cast<unsigned char>(piece[at - 1]),
                 after = static_cast<unsigned char>(piece[at]);
      if (!byte_joints_[static_cast<std::size_t>(before << 8 | after)]) return at;
    }
    return piece.size();
  }
  std::size_t at = begin;
  char32_t before = next_code_point(piece, at);
  while (at < piece.size()) {
    const std::size_t boundary = at;
    const char32_t after = next_code_point(piece, at);
    // Neighbouring unknown characters may become one token.
    if (joints_.find(pair_key(before, after)) == nullptr && id_of_code_point(before) >= 0 &&
        id_of_code_point(after) >= 0) {
      return boundary;
    }
    before = after;
  }
  return piece.size();
}

void Bpe::encode_segment(std::string_view segment, bool bytes, Session& session) const {
  const std::uint64_t hash = segment.size() <= kLongestWord ? hash64(segment) : 0;
  if (segment.size() <= kLongestWord && session.recall(segment, hash)) return;
  std::vector<Symbol>& symbols = session.symbols_;
  symbols.clear();
  if (bytes) {
    for (const char byte : segment) symbols.push_back({letters_[static_cast<unsigned char>(byte)], 1});
  } else {
    begin_with_characters(segment, session);
  }
  if (symbols.size() <= kLongestScan && may_cut_) {
    merge_by_scan(symbols, session);
  } else {
    merge_by_queue(symbols, session);
  }
  const std::size_t first = session.tokens.size();
  session.tokens.insert(session.tokens.end(), symbols.begin(), symbols.end());
  if (segment.size() <= kLongestWord) session.remember(segment, hash, first);
}

void Bpe::begin_with_characters(std::string_view segment, Session& session) const {
  const bool marked = !options_.continuing_subword_prefix.empty() || !options_.end_of_word_suffix.empty();
  std::optional<Symbol> unknown;
  std::string spelling;
  for (std::size_t at = 0; at < segment.size();) {
    const std::size_t begin = at;
    const char32_t c = next_code_point(segment, at);
    const auto length = static_cast<std::uint32_t>(at - begin);
    std::string_view character = segment.substr(begin, length);
    TokenId id = -1;
    if (marked) {
      spelling = begin > 0 ? options_.continuing_subword_prefix : std::string();
      spelling += character;
      if (at == segment.size()) spelling += options_.end_of_word_suffix;
      character = spelling;
      id = vocabulary_.find(character).value_or(-1);
    } else {
      id = id_of_code_point(c);
    }
    if (id < 0) {
      append_unknown(character, length, unknown, session.symbols_);
      continue;
    }
    if (unknown) session.symbols_.push_back(*unknown);
    unknown.reset();
    session.symbols_.push_back({id, length});
  }
  if (unknown) session.symbols_.push_back(*unknown);
}

void Bpe::append_unknown(std::string_view character, std::uint32_t length, std::optional<Symbol>& pending,
                         std::vector<Symbol>& out) const {
  const auto fallback = [&](char byte) { return fallback_[static_cast<unsigned char>(byte)]; };
  if (options_.byte_fallback &&
      std::all_of(character.begin(), character.end(), [&](char byte) { return fallback(byte) >= 0; })) {
    // A pending unknown stays pending: `tokenizers` writes it behind these bytes.
    for (const char byte : character) out.push_back({fallback(byte), 1});
    return;
  }
  if (!options_.unk_token) return;
  if (!unk_) {
    fail<FormatError>({.op = "tokenizer.encode",
                       .what = "unk_token " + quote(*options_.unk_token),
                       .expected = "a token of the vocabulary"});
  }
  if (pending && options_.fuse_unk) {
    pending->length += length;
    return;
  }
  if (pending) out.push_back(*pending);
  pending = Symbol{*unk_, length};
}

void Bpe::merge_by_scan(std::vector<Symbol>& symbols, Session& session) const {
  std::vector<Merge>& pairs = session.pairs_;  // of each symbol with the next
  const auto pair_at = [&](std::size_t i) {
    const Merge* merge = merge_of(symbols[i].id, symbols[i + 1].id);
    return merge != nullptr ? *merge : Merge{kNoRank, -1};
  };
  pairs.clear();
  for (std::size_t i = 0; i + 1 < symbols.size(); ++i) pairs.push_back(pair_at(i));
  while (!pairs.empty()) {
    const auto best = std::min_element(pairs.begin(), pairs.end(),
                                       [](const Merge& a, const Merge& b) { return a.rank < b.rank; });
    if (best->rank == kNoRank) return;
    const auto i = static_cast<std::size_t>(best - pairs.begin());
    symbols[i] = {best->joined, symbols[i].length + symbols[i + 1].length};
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(i) + 1);
    pairs.erase(best);
    if (i < pairs.size()) pairs[i] = pair_at(i);
    if (i > 0) pairs[i - 1] = pair_at(i - 1);
  }
}

void Bpe::merge_by_queue(std::vector<Symbol>& symbols, Session& session) const {
  auto& links = session.links_;
  auto& queue = session.queue_;
  const auto count = static_cast<std::int32_t>(symbols.size());
  const auto symbol = [&](std::int32_t i) -> Symbol& { return symbols[static_cast<std::size_t>(i)]; };
  const auto link = [&](std::int32_t i) -> Session::Link& { return links[static_cast<std::size_t>(i)]; };
  const auto candidate = [&](std::int32_t i) {
    if (i < 0 || link(i).next < 0) return;
    if (const Merge* merge = merge_of(symbol(i).id, symbol(link(i).next).id)) {
      queue.push_back({merge->rank, static_cast<std::uint32_t>(i), merge->joined});
      std::push_heap(queue.begin(), queue.end(), std::greater<>());
    }
  };
  links.clear();
  for (std::int32_t i = 0; i < count; ++i) links.push_back({i - 1, i + 1 < count ? i + 1 : -1});
  queue.clear();
  for (std::int32_t i = 0; i < count; ++i) candidate(i);
  constexpr TokenId kGone = -1;
  while (!queue.empty()) {
    std::pop_heap(queue.begin(), queue.end(), std::greater<>());
    const Session::Candidate top = queue.back();
    queue.pop_back();
    const auto left = static_cast<std::int32_t>(top.position);
    if (symbol(left).id == kGone || link(left).next < 0) continue;
    const std::int32_t right = link(left).next;
    // The pair may have changed since it was queued.
    const Merge* merge = merge_of(symbol(left).id, symbol(right).id);
    if (merge == nullptr || merge->joined != top.joined) continue;
    symbol(left) = {top.joined, symbol(left).length + symbol(right).length};
    symbol(right).id = kGone;
    link(left).next = link(right).next;
    if (link(right).next >= 0) link(link(right).next).previous = left;
    candidate(link(left).previous);
    candidate(left);
  }
  std::erase_if(symbols, [](const Symbol& s) { return s.id == kGone; });
}

Bpe::Session::Session(std::size_t text_size)
    : words_(std::bit_ceil(std::clamp<std::size_t>(text_size / 8, 16, 16384))) {
  tokens.reserve(text_size / 4 + 8);
}

bool Bpe::Session::recall(std::string_view segment, std::uint64_t hash) {
  const Word& word = words_[hash & (words_.size() - 1)];
  if (word.text == nullptr || std::string_view(word.text, word.length) != segment) return false;
  for (std::uint32_t i = 0; i < word.count; ++i) tokens.push_back(tokens[word.first + i]);
  return true;
}

void Bpe::Session::remember(std::string_view segment, std::uint64_t hash, std::size_t first) {
  if (first > std::numeric_limits<std::uint32_t>::max() / 2) return;
  words_[hash & (words_.size() - 1)] = {segment.data(), static_cast<std::uint32_t>(segment.size()),
                                        static_cast<std::uint32_t>(first),
                                        static_cast<std::uint32_t>(tokens.size() - first)};
}

}  // namespace modicum::text
