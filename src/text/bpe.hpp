// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <modicum/text/tokenizer.hpp>

#include "flat_map.hpp"
#include "vocabulary.hpp"

namespace modicum::text {

struct BpeOptions {
  std::optional<std::string> unk_token;
  std::string continuing_subword_prefix;
  std::string end_of_word_suffix;
  bool fuse_unk = false;
  bool byte_fallback = false;
  bool ignore_merges = false;
};

/// A token and how many bytes of its piece it covers.
struct Symbol {
  TokenId id;
  std::uint32_t length;
};

/// Byte-pair encoding: a piece begins as its characters (or bytes), then the pair of neighbours whose merge
/// was learnt first is joined, the leftmost first among equals, until no pair is known.
class Bpe {
 public:
  struct Merge {
    std::uint32_t rank;
    TokenId joined;
  };

  /// Throws `FormatError` where a merge names an unknown token.
  Bpe(Vocabulary vocabulary, BpeOptions options);
  /// To be called in the order of the file.
  void add_merge(std::string_view left, std::string_view right);

  /// Whether `encode_bytes` is possible: there is a token for the letter of every byte, and no subword marks.
  bool takes_bytes() const { return takes_bytes_; }

  /// What one call of `Tokenizer::encode` remembers: buffers, and words already seen. Pieces must stay where
  /// they are as long as it is used.
  class Session;

  /// Appends the tokens of `piece`; in the second form `piece` holds the bytes themselves, which stand for
  /// letters.
  void encode(std::string_view piece, Session& session) const;
  void encode_bytes(std::string_view piece, Session& session) const;

  const Vocabulary& vocabulary() const { return vocabulary_; }

 private:
  const Merge* merge_of(TokenId left, TokenId right) const {
    return merges_.find(static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
                        static_cast<std::uint32_t>(right));
  }
  TokenId id_of_code_point(char32_t c) const;
  bool whole_word(std::string_view piece, bool bytes, Session& session) const;
  void encode_segment(std::string_view segment, bool bytes, Session& session) const;
  void begin_with_characters(std::string_view segment, Session& session) const;
  void append_unknown(std::string_view character, std::uint32_t length, std::optional<Symbol>& pending,
                      std::vector<Symbol>& out) const;
  std::size_t segment_end(std::string_view piece, std::size_t begin, bool bytes) const;
  void merge_by_scan(std::vector<Symbol>& symbols, Session& session) const;
  void merge_by_queue(std::vector<Symbol>& symbols, Session& session) const;
  void learn_joints(std::string_view left, std::string_view right);

  Vocabulary vocabulary_;
  BpeOptions options_;
  FlatMap<Merge> merges_;
  std::optional<TokenId> unk_;
  std::array<TokenId, 256> fallback_{};  ///< <0x00> …, -1 where missing
  std::array<TokenId, 256> letters_{};   ///< token of the letter of a byte
  std::vector<TokenId> characters_;      ///< token of a code point below `kDirect`
  bool takes_bytes_ = false;
  std::uint32_t merge_count_ = 0;

  /// Between which neighbouring characters (and bytes, where letters stand for them) a merge ever joins.
  /// Everywhere else a long piece may be cut, which changes nothing and makes words out of a document.
  bool may_cut_ = true;
  FlatMap<char> joints_;
  std::vector<bool> byte_joints_;
};

class Bpe::Session {
 public:
  /// `text_size`: bytes that will be encoded, to choose the size of the memory of words.
  explicit Session(std::size_t text_size);

  std::vector<Symbol> tokens;

 private:
  friend class Bpe;
  struct Word {
    const char* text = nullptr;
    std::uint32_t length = 0;
    std::uint32_t first = 0, count = 0;  ///< in `tokens`
  };
  struct Link {
    std::int32_t previous, next;
  };
  struct Candidate {
    std::uint32_t rank, position;
    TokenId joined;
    bool operator>(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : position > other.position;
    }
  };

  bool recall(std::string_view segment, std::uint64_t hash);
  void remember(std::string_view segment, std::uint64_t hash, std::size_t first);

  std::vector<Word> words_;
  std::vector<Symbol> symbols_;
  std::vector<Merge> pairs_;
  std::vector<Link> links_;
  std::vector<Candidate> queue_;
  std::string letters_;
};

}  // namespace modicum::text
