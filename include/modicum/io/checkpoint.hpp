// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include <modicum/io/model_config.hpp>
#include <modicum/io/safetensors.hpp>
#include <modicum/tensor/matrix.hpp>

namespace modicum {

/// A Hugging Face directory: config.json and model.safetensors, or shards with model.safetensors.index.json. The
/// weights are mapped, never copied.
class Checkpoint {
 public:
  /// Throws `IoError` for a missing directory or file, `FormatError` where a file is broken, a shard named by the
  /// index is absent, or index and shards disagree.
  static Checkpoint open(const std::filesystem::path& directory);

  const std::filesystem::path& directory() const noexcept { return directory_; }
  const ModelConfig& config() const noexcept { return config_; }
  bool contains(std::string_view tensor) const;
  std::vector<std::string> names() const;
  const TensorInfo& info(std::string_view tensor) const;
  std::span<const std::byte> bytes(std::string_view tensor) const;
  /// A float tensor of one or two dimensions as a matrix in place ([n] is one row of n). Throws `FormatError` unless
  /// it is [rows, cols] of F32, BF16 or F16.
  WeightView weight(std::string_view tensor, std::size_t rows, std::size_t cols) const;
  const std::vector<SafetensorsFile>& files() const noexcept { return files_; }

  /// XXH3-128 over config.json's meaning for the forward pass and every byte of the weights: two checkpoints with one
  /// fingerprint compute the same. Hashes the files in blocks; about 0.1 s per GB that is in memory.
  std::string fingerprint() const;

 private:
  std::filesystem::path directory_;
  ModelConfig config_;
  std::vector<SafetensorsFile> files_;
  std::map<std::string, std::size_t, std::less<>> file_of_;
};

/// Writes a checkpoint's weights as shards of at most `shard_bytes` with an index (or one model.safetensors),
/// streaming. Everything is written beside; `commit` renames the shards and then the index into place.
class CheckpointWriter {
 public:
  /// `specs` lists every tensor in the order in which bytes will come.
  CheckpointWriter(std::filesystem::path directory, std::vector<TensorSpec> specs,
                   std::uint64_t shard_bytes = std::uint64_t{5} << 30,
                   std::map<std::string, std::string> metadata = {{"format", "pt"}});
  ~CheckpointWriter();

  void append(std::span<const std::byte> bytes);
  void commit();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace modicum
