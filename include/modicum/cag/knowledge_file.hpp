// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <modicum/base/thread_pool.hpp>
#include <modicum/cag/prompt.hpp>
#include <modicum/io/safetensors.hpp>
#include <modicum/kv/tree.hpp>
#include <modicum/model/model.hpp>

namespace modicum::cag {

inline constexpr std::string_view kFormatName = "modicum.knowledge";
inline constexpr int kFormatVersion = 1;

/// A document of a knowledge file: where it came from and where it lies.
struct KnownDocument {
  std::string name;
  std::string source;
  std::string hash;  ///< XXH3-128 of its bytes
  DocumentSpan span;
};

/// Everything in a knowledge file but its arrays: the JSON under the key "manifest" of the safetensors
/// metadata.
struct Manifest {
  ModelFingerprint fingerprint;
  std::string model_type;
  KvShape shape;
  std::size_t kv_heads = 0;
  std::size_t tokens = 0;
  std::size_t hidden_size = 0;
  std::size_t resume_byte = 0;
  std::size_t resume_token = 0;
  PromptFormat format;
  std::vector<KnownDocument> documents;

  std::string to_json() const;
  /// Throws `FormatError` naming the field.
  static Manifest parse(std::string_view json, const std::string& file_name);
};

/// A knowledge cache on disk, version 1: a safetensors file that any tool can list, data aligned to 4096
/// bytes, mode 0600. Tensors, in order:
///
///   k, v        [layers, tokens, kv_heads, head_dim]  keys (rotated from the first token) and values,
///   model's dtype hidden      F32 [hidden_size]  the model's output at the last token token_ids   I32
///   [tokens] token_bytes U64 [tokens]       where each begins in `prompt` checksums   U64 [blocks] XXH3-64
///   of each MiB of the data before it prompt      U8 [bytes]         the text that was read seal        U8
///   [16]            XXH3-128 of the header, `checksums` and `prompt`
class KnowledgeFile {
 public:
  /// Maps and checks: format, version, manifest, that every array has the size that the manifest says, the
  /// seal and every checksum (about 0.1 s per GB that is in memory, spread over `pool`). Throws `IoError`,
  /// `FormatError`, `Corrupt`.
  static KnowledgeFile open(const std::filesystem::path& path, ThreadPool& pool);

  const Manifest& manifest() const noexcept { return manifest_; }
  std::string_view prompt() const noexcept { return prompt_; }
  const std::vector<TokenId>& token_ids() const noexcept { return token_ids_; }
  const std::vector<std::uint64_t>& token_bytes() const noexcept { return token_bytes_; }
  const std::vector<float>& hidden() const noexcept { return hidden_; }
  std::uint64_t bytes() const noexcept { return file_.file().bytes().size(); }
  /// Keys and values where they lie, read-only.
  std::shared_ptr<const KvSegment> segment() const;

 private:
  explicit KnowledgeFile(SafetensorsFile file) : file_(std::move(file)) {}
  void check_arrays() const;
  void check_sums(ThreadPool& pool) const;
  void read_arrays();

  SafetensorsFile file_;
  Manifest manifest_;
  std::string_view prompt_;
  std::vector<TokenId> token_ids_;
  std::vector<std::uint64_t> token_bytes_;
  std::vector<float> hidden_;
};

/// Writes a knowledge file whole or not at all. `leaf` is the branch that has read `prompt.ids` from the
/// root.
void write_knowledge(const std::filesystem::path& path, const Manifest& manifest, const SharedPrompt& prompt,
                     const Branch& leaf);

}  // namespace modicum::cag
