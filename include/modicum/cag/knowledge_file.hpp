// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include <modicum/base/atomic_file.hpp>
#include <modicum/base/thread_pool.hpp>
#include <modicum/cag/manifest.hpp>
#include <modicum/io/safetensors.hpp>
#include <modicum/kv/tree.hpp>

namespace modicum::cag {

/// A knowledge cache on disk: a safetensors file that any tool can list, data aligned to 4096 bytes, mode
/// 0600. Tensors, in order (those of no rows are left out, but for k and v):
///
///   k, v                 [layers, wide tokens, kv_heads, head_dim], the model's dtype: rows of wide segments
///   k_scales             F16 [layers, groups, 2, kv_heads, head_dim]: scale and offset of a channel in 64
///   rows v_scales             F16 [layers, coded tokens, kv_heads, 2] k_codes, v_codes     U8 [layers, coded
///   tokens, kv_heads, head_dim · bits / 8]: see `ops::KvScales` hidden               F32 [hidden_size],
///   joint only: the model's output at the last token token_ids            I32 [tokens] token_bytes U64
///   [tokens]   where each begins in `prompt` checksums            U64 [blocks]   XXH3-64 of each MiB of the
///   data before it prompt               U8 [bytes]     the text that was read seal                 U8 [16]
///   XXH3-128 of the header, `checksums` and `prompt`
///
/// Rows of a kind stand in the order of their segments; groups of 64 rows count from each segment's first.
/// Keys are rotated by the positions that the manifest's segments name. Version 1 knows one wide segment.
class KnowledgeFile {
 public:
  /// Maps and checks: format, version, manifest, that every array has the size that the manifest says, and
  /// the seal: a millisecond at any size. Throws `IoError`, `FormatError`, `Unsupported`, `Corrupt`.
  static KnowledgeFile open(const std::filesystem::path& path);

  /// Compares every checksum, at the speed of memory: once for each file and process, however often it is
  /// opened. Throws `Corrupt`.
  void verify(ThreadPool& pool) const;
  /// The same, whether or not it was done before.
  void verify_again(ThreadPool& pool) const;

  /// Throws `Corrupt` where the file was truncated or written to in place since it was opened: what was
  /// computed from it before then does not count.
  void check_unchanged() const;

  const Manifest& manifest() const noexcept { return manifest_; }
  std::string_view prompt() const noexcept { return prompt_; }
  std::string_view document_text(std::size_t document) const;
  const std::vector<TokenId>& token_ids() const noexcept { return token_ids_; }
  const std::vector<std::uint64_t>& token_bytes() const noexcept { return token_bytes_; }
  const std::vector<float>& hidden() const noexcept { return hidden_; }
  std::uint64_t bytes() const noexcept { return file_.file().bytes().size(); }
  const std::filesystem::path& path() const noexcept { return file_.file().path(); }
  const FileIdentity& identity() const { return file_.file().identity(); }
  /// Keys and values of each of the manifest's segments where they lie, read-only.
  const std::vector<std::shared_ptr<const KvSegment>>& segments() const noexcept { return segments_; }

 private:
  explicit KnowledgeFile(SafetensorsFile file) : file_(std::move(file)) {}
  void check_arrays() const;
  void check_seal() const;
  void read_arrays();
  void find_segments();
  [[noreturn]] void fail_corrupt(const std::string& where) const;

  SafetensorsFile file_;
  Manifest manifest_;
  std::string_view prompt_;
  std::vector<TokenId> token_ids_;
  std::vector<std::uint64_t> token_bytes_;
  std::vector<float> hidden_;
  std::vector<std::shared_ptr<const KvSegment>> segments_;
};

/// What a knowledge file is written from. `rows` has an entry for each segment of the manifest: the runs that
/// hold its rows in order, wide or of codes as the segment says (a run of codes is a whole segment).
struct KnowledgeContent {
  const Manifest& manifest;
  const SharedPrompt& prompt;
  std::span<const float> hidden;
  std::vector<std::vector<ops::KeyRun>> rows;
};

/// Writes a knowledge file whole or not at all, over what is there or, with `replaced`, only over that file
/// (see `AtomicFile::commit_over`).
void write_knowledge(const std::filesystem::path& path, const KnowledgeContent& content,
                     const std::optional<FileIdentity>& replaced = std::nullopt);

/// The run of all rows of a segment.
ops::KeyRun run_of(const KvSegment& segment);

}  // namespace modicum::cag
