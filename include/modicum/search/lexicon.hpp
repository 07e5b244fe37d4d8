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

#include <modicum/base/progress.hpp>
#include <modicum/base/thread_pool.hpp>
#include <modicum/search/constraint.hpp>
#include <modicum/text/tokenizer.hpp>

namespace modicum {

/// A constraint whose texts are exactly the entries of a set: labels, names of entities, identifiers, by the
/// million. Built once (`LexiconBuilder`), saved, and mapped ever after.
///
/// A trie in level order (Jacobson, "Space-efficient static trees and graphs", 1989): the nodes of a depth
/// before those of the next, siblings by token. So the children of a node are neighbours, the edge e leads to
/// the node e + 1, and only each node's first edge and each edge's token are stored: 8 bytes and a bit a
/// node. `allowed` is a span of the tokens where they lie, whatever the fan-out, `advance` a binary search
/// in it. (Merging equal endings, as Daciuk et al. 2000 do, saves nodes but needs 8 bytes more an edge, for
/// its target and for the count that tells entries apart.)
///
/// An entry's index is its rank in that order: shorter entries first, those of one length by their tokens. It
/// is dense, so it can index arrays; where an entry stood in what the lexicon was built from, `positions`
/// tells. A state is a node; nothing is released. All members may be called from several threads. Copies
/// share everything.
class Lexicon final : public Constraint {
 public:
  /// Of token ids. Throws as `LexiconBuilder`.
  static Lexicon build(std::span<const std::vector<TokenId>> entries, const Progress& progress = {});

  /// Maps a file that `save` wrote, and checks all of it: milliseconds for a million entries. With
  /// `tokenizer`, its fingerprint must be the one that the entries were encoded with; without, whoever opens
  /// it answers for that. Throws `IoError`, `FormatError`, `Corrupt`, `Unsupported` (a newer version), and
  /// `FingerprintMismatch`.
  ///
  /// The file may be replaced by renaming at any time. One that is truncated meanwhile makes `allowed` and
  /// `advance` throw `Corrupt`, one that is written to in place, the next `root`.
  static Lexicon open(const std::filesystem::path& path, std::string_view tokenizer = {});
  /// The same of a file's bytes, which are copied. `name` stands in errors.
  static Lexicon parse(std::span<const std::byte> file, std::string_view name,
                       std::string_view tokenizer = {});
  /// Writes a safetensors file, whole or not at all, mode 0600, the same bytes for the same entries in the
  /// same order. Throws `IoError`.
  void save(const std::filesystem::path& path) const;

  std::size_t size() const noexcept;       ///< different entries
  std::size_t positions() const noexcept;  ///< entries that it was built from, repetitions included
  std::size_t nodes() const noexcept;      ///< of the trie, the root included
  std::size_t bytes() const noexcept;      ///< of the arrays, in memory or mapped
  TokenId largest_token() const noexcept;  ///< what it indexes logits with is at most that
  /// Of the tokenizer that made the entries; empty where they came as ids.
  const std::string& tokenizer() const noexcept;
  /// What was put before each text when it was encoded.
  const std::string& prefix() const noexcept;

  /// The index of the entry `ids`, if it is one.
  std::optional<std::size_t> find(std::span<const TokenId> ids) const;
  /// The index of the entry that ends in `state`, if one does.
  std::optional<std::size_t> index(State state) const;
  /// The tokens of the entry `index`. Throws `InvalidArgument` beyond `size()`.
  std::vector<TokenId> entry(std::size_t index) const;
  /// Where the entry `index` stood in what the lexicon was built from, ascending: one place, or all of those
  /// that share the name. The span lives as long as a copy of this object.
  std::span<const std::uint32_t> positions(std::size_t index) const;

  State root() const override;
  /// `AllowedTokens::Kind::only`, without use of the scratch space. At the end of an entry that begins no
  /// longer one it is empty, with `may_end`.
  AllowedTokens allowed(State state, AllowedScratch& scratch) const override;
  /// Throws `InvalidArgument` for a token that `allowed` did not name.
  State advance(State state, TokenId token) const override;
  bool ends_by_itself() const override { return true; }
  std::string_view tokenizer_fingerprint() const override { return tokenizer(); }

 private:
  friend class LexiconBuilder;
  struct Data;
  explicit Lexicon(std::shared_ptr<const Data> data) : data_(std::move(data)) {}
  std::shared_ptr<const Data> data_;
};

/// Gathers the entries of a lexicon; their positions count from 0 in the order in which they are added.
class LexiconBuilder {
 public:
  /// For token ids.
  LexiconBuilder() = default;
  /// For texts, each of which is encoded as `prefix` + text, without what the post-processor adds. What a
  /// model writes after a prompt that ends within a line begins with a space in most tokenizers (" Paris" is
  /// another token than "Paris"): then the prefix is " ". After a chat template's header, which ends in a
  /// line break or a special token, it is empty. Throws `InvalidArgument` for a prefix that is no UTF-8.
  explicit LexiconBuilder(Tokenizer tokenizer, std::string prefix = {});

  /// Throws `InvalidArgument` for an empty entry or a negative id, `Unsupported` beyond 2^32 − 1 entries.
  void add(std::span<const TokenId> entry);
  /// Encodes `texts` over all threads and adds them, all or none. Throws also for a text that is no UTF-8 or
  /// that contains a special token (a search would take it for the end of the answer), naming its position.
  void add(std::span<const std::string> texts, ThreadPool& pool);

  std::size_t size() const noexcept { return ends_.size(); }  ///< entries so far

  /// Time O(tokens + n log n), memory about that of the tokens and 30 bytes an entry beside what was added.
  /// Throws `InvalidArgument` where there are no entries, `Unsupported` beyond 2^32 − 1 nodes, `Cancelled`.
  /// Stages: "sort" and "build".
  Lexicon finish(const Progress& progress = {}) &&;

 private:
  std::optional<Tokenizer> tokenizer_;
  std::string prefix_;
  std::vector<TokenId> tokens_;      ///< of all entries, end to end
  std::vector<std::uint64_t> ends_;  ///< where in `tokens_` each entry ends
};

}  // namespace modicum
