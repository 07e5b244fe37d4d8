// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace modicum {

using TokenId = std::int32_t;

/// Half-open range of bytes in the text that was encoded.
struct ByteRange {
  std::size_t begin = 0;
  std::size_t end = 0;
  bool operator==(const ByteRange&) const = default;
};

/// Token ids and, for each, the bytes of the input that it stands for (empty for a token that the
/// post-processor added).
struct Encoding {
  std::vector<TokenId> ids;
  std::vector<ByteRange> offsets;
};

enum class SpecialTokens { keep, skip };  ///< in decoding: write special tokens out, or leave them out
enum class AddSpecial { no, yes };        ///< in encoding: let the post-processor add BOS and the like

/// A tokenizer.json: byte-level BPE or SentencePiece-style BPE, equal to Hugging Face `tokenizers` in ids and
/// offsets. Immutable and safe to share between threads; copies share the tables.
class Tokenizer {
 public:
  /// Reads tokenizer.json, or the directory that holds it. Throws `IoError`, `FormatError` for a broken file
  /// and `Unsupported` for a component that is not implemented, naming it.
  static Tokenizer load(const std::filesystem::path& path);
  static Tokenizer parse(std::string_view json);

  /// `text` is UTF-8; throws `InvalidArgument` with the byte offset where it is not.
  Encoding encode(std::string_view text, AddSpecial add = AddSpecial::yes) const;

  /// Bytes that do not form UTF-8 become U+FFFD, as `tokenizers` does. Throws `InvalidArgument` for an
  /// unknown id.
  std::string decode(std::span<const TokenId> ids, SpecialTokens special = SpecialTokens::skip) const;

  std::size_t vocabulary_size() const;  ///< including added tokens
  std::optional<TokenId> id_of(std::string_view token) const;
  std::optional<std::string> token_of(TokenId id) const;
  bool is_special(TokenId id) const;

  /// The bytes that a token adds to a text, in the midst of it: part of a character, perhaps. Empty for a
  /// special token and for an unknown id.
  std::string bytes_of(TokenId id) const;

  /// XXH3-128 of the tokenizer.json text, for fingerprints.
  const std::string& fingerprint() const;
  /// The same without making a tokenizer of it: a millisecond instead of a tenth of a second for large ones.
  static std::string fingerprint_of(const std::filesystem::path& path);

 private:
  friend class StreamDecoder;
  struct State;
  explicit Tokenizer(std::shared_ptr<const State> state) : state_(std::move(state)) {}
  std::shared_ptr<const State> state_;
};

/// Decodes a growing sequence of tokens and emits text as soon as it is certain: never half a character, and
/// the pieces joined equal `decode` of the whole. Memory and time per token do not grow with the sequence.
class StreamDecoder {
 public:
  explicit StreamDecoder(Tokenizer tokenizer, SpecialTokens special = SpecialTokens::skip);
  StreamDecoder(StreamDecoder&&) noexcept;
  StreamDecoder& operator=(StreamDecoder&&) noexcept;
  ~StreamDecoder();

  /// The text that became certain with this token, possibly empty. Throws `InvalidArgument` for an unknown
  /// id, and is then as if it had not been called.
  std::string push(TokenId id);
  /// What is left, an incomplete character as U+FFFD. The next token begins a new text.
  std::string finish();

 private:
  struct State;
  Tokenizer tokenizer_;
  SpecialTokens special_;
  std::unique_ptr<State> state_;
};

}  // namespace modicum
