// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <modicum/base/progress.hpp>
#include <modicum/cag/document.hpp>
#include <modicum/cag/knowledge.hpp>
#include <modicum/cag/prompt.hpp>

namespace modicum::cag {

/// What is done where the documents are more than the model's context holds.
enum class Overflow {
  error,   ///< refuse, with each document's share
  select,  ///< blocks only: each question attends to the segments that BM25 finds for it
};

struct BuildOptions {
  PromptFormat format = {};
  Layout layout = Layout::joint;
  /// Empty: the smallest encoding whose measured divergence from the wide one stays within `max_kl`.
  std::optional<KvEncoding> kv = KvEncoding::wide;
  double max_kl = 0.01;  ///< nats a token
  Overflow overflow = Overflow::error;
  /// Tokens of the context that must be left for a question and its answer.
  std::size_t reserve = 64;
  std::size_t segment_tokens = 1024;  ///< blocks: documents of more are cut into parts
  std::size_t recompute = 16;         ///< blocks: see `compose`; 0 leaves segments as they were read
  /// Confidence under which an answer counts as none; see `Answer::confidence`.
  double abstain_below = kAbstainBelow;
  /// So often a long build saves what it has read to `<path>.partial`, from which the next one goes on.
  double journal_seconds = 60;
};

/// What a build would take.
struct Plan {
  struct Share {
    std::string name;
    std::size_t tokens = 0;
  };
  std::vector<Share> documents;
  std::size_t tokens = 0;   ///< of the whole prompt
  std::size_t context = 0;  ///< of the model
  std::size_t reserve = 0;
  bool fits = false;  ///< tokens + reserve within the context
  std::size_t segments = 0;
  std::uint64_t wide_bytes = 0, int8_bytes = 0, int4_bytes = 0;  ///< of the cache, about
  double seconds = 0;  ///< of reading, extrapolated from the first 256 tokens, read now on this machine
};

/// Tells what a build of these documents would take, writing nothing.
Plan plan(const Model& model, std::span<const Document> documents, const BuildOptions& options = {});

/// Reads the documents once and writes what the model keeps of them to `path`. A file that was there stays
/// until the new one is whole, and processes that have it open keep it. Documents that `changes_often` are
/// put behind the others.
///
/// Throws before any work: what `check_documents` throws, `ContextOverflow` with both counts and each
/// document's share, and `IoError` where `path` cannot be written or the disk is too full. A build that was
/// cancelled or ended by a crash leaves the old file and, after more than a minute, what it has read so far
/// (`BuildOptions::journal_seconds`); else nothing.
Knowledge build(const Model& model, std::span<const Document> documents, const std::filesystem::path& path,
                const BuildOptions& options = {}, const Progress& progress = {});
/// The same from text and markdown files and folders of them.
Knowledge build(const Model& model, std::span<const std::filesystem::path> sources,
                const std::filesystem::path& path, const BuildOptions& options = {},
                const Progress& progress = {});

/// What happened to a file's documents.
struct Changes {
  std::vector<std::string> added, replaced, removed, unchanged;
  std::size_t computed_tokens = 0;  ///< that had to be read
  std::size_t tokens = 0;           ///< of all
};

/// What the documents that are put are expected to be.
enum class Expected {
  anything,
  new_names,    ///< one that is there is an error
  known_names,  ///< one that is no longer there stays out
};

/// Puts documents in the place of those with their names, the others behind the ones that are there (before
/// those that `changes_often`), and takes out the ones named in `remove`. The result is what a fresh build of
/// the resulting documents gives, bit for bit: a joint cache is read from the first token that differs, in
/// blocks only what changed is read. A joint cache in int8 or int4 is read from the start, as it no longer
/// holds what its keys were. Where nothing changes nothing is written.
///
/// Throws as `build` and `Knowledge::open`, `InvalidArgument` for a name in `remove` that is not there (and
/// of one in `put` that is, where new names are expected), and `IoError` where another writer replaced the
/// file meanwhile; the file is then as it was.
Changes update(const Model& model, const std::filesystem::path& path, std::span<const Document> put,
               std::span<const std::string> remove = {}, const Progress& progress = {},
               Expected expected = Expected::anything);

/// The documents of a file, as they were given.
std::vector<Document> documents_of(const KnowledgeFile& file);

/// Builds from keys and values that were computed elsewhere: `segment` has one wide row for each token of the
/// joint prompt, in the model's dtype, rotated from position 0. `make_shared_prompt` gives those tokens.
Knowledge adopt(const Model& model, std::span<const Document> documents, const std::filesystem::path& path,
                std::shared_ptr<const KvSegment> segment, const BuildOptions& options = {});

/// Keys and values of a joint cache as [layers, tokens, kv_heads, head_dim] of the model's dtype, codes as
/// the numbers that they stand for. `k` and `v` have room for tokens · row_bytes a layer.
void copy_rows(const KnowledgeFile& file, std::byte* k, std::byte* v);

/// What `verify_deep` found.
struct DeepCheck {
  std::size_t positions = 0;  ///< compared
  double difference = 0;      ///< of keys and values, relative, root mean square: the largest of all samples
};

/// Checks every checksum anew and computes the keys and values of `samples` tokens again, evenly over the
/// documents, each after what the file holds before it. Wide ones agree bit for bit on the instruction set
/// that built them, and within rounding on others. Throws `Corrupt`, also where they differ by more than
/// rounding explains, and what `Knowledge::open` throws.
DeepCheck verify_deep(const Model& model, const std::filesystem::path& path, std::size_t samples = 256,
                      const Progress& progress = {});

}  // namespace modicum::cag
