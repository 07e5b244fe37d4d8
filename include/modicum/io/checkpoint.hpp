// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <modicum/base/progress.hpp>
#include <modicum/base/thread_pool.hpp>
#include <modicum/io/model_config.hpp>
#include <modicum/io/safetensors.hpp>
#include <modicum/tensor/matrix.hpp>

namespace modicum {

/// Whether a fingerprint reads the weights again.
enum class Rehash {
  always,
  when_changed,  ///< not where the user's cache folder has it from an earlier process, of files with the same
                 ///< device, inode, size and times
};

/// A Hugging Face directory: config.json and model.safetensors, or (where there is no such file, as
/// transformers looks for them) the shards that model.safetensors.index.json names. The weights are mapped,
/// not copied. Copies of a Checkpoint share everything; views stay valid as long as one of them lives.
class Checkpoint {
 public:
  /// Throws `IoError` for a missing directory or file, `FormatError` where a file is broken, or where the
  /// index names a shard that is absent or outside the directory, or a tensor that its shard does not hold.
  /// Tensors of a shard that the index does not name are left out.
  static Checkpoint open(const std::filesystem::path& directory);

  const std::filesystem::path& directory() const noexcept;
  const ModelConfig& config() const noexcept;
  bool contains(std::string_view tensor) const;
  /// Sorted.
  std::vector<std::string> names() const;
  /// Throws `FormatError` where there is no such tensor, as do those below.
  const TensorInfo& info(std::string_view tensor) const;
  /// The bytes in place, which in rare old files are not aligned to the element size.
  std::span<const std::byte> bytes(std::string_view tensor) const;
  /// A float tensor of one or two dimensions as a matrix in place ([n] is one row of n). Where the file does
  /// not align it to its element size, the first call makes an aligned copy that the checkpoint keeps. Throws
  /// `FormatError` unless it is [rows, cols] of F32, BF16 or F16. Safe from several threads.
  WeightView weight(std::string_view tensor, std::size_t rows, std::size_t cols) const;
  /// The matrix of the linear layer called `module` ("model.layers.0.mlp.up_proj"): the float tensor
  /// `module`.weight, or integers with their scales in place, where quantization_config says so and
  /// `module`.weight_packed (or an int8 `module`.weight) and `module`.weight_scale are there. Throws
  /// `FormatError` where configuration and tensors do not agree, `Unsupported` for zero points, reordered
  /// columns, and where the columns are no multiple of the group.
  WeightView linear_weight(std::string_view module, std::size_t rows, std::size_t cols) const;
  /// Weights of all tensors; scales and shapes that belong to packed integers do not count.
  std::uint64_t parameters() const;
  const std::vector<SafetensorsFile>& files() const noexcept;

  /// XXH3-128 over config.json's meaning for the forward pass and every tensor's name, dtype, shape and
  /// bytes: two checkpoints with one fingerprint compute the same, however they are sharded and spelled.
  /// Reads all weights in blocks of 16 MiB, spread over `pool` if there is one. With `Rehash::when_changed`
  /// it is looked up, and kept, in $MODICUM_CACHE_DIR (set but empty: nowhere), else $XDG_CACHE_HOME/modicum,
  /// else
  /// ~/.cache/modicum; files that changed within the last two seconds are not trusted to have settled.
  std::string fingerprint(ThreadPool* pool = nullptr, const Progress& progress = {},
                          Rehash rehash = Rehash::always) const;

 private:
  struct State;
  explicit Checkpoint(std::shared_ptr<const State> state) : state_(std::move(state)) {}
  std::shared_ptr<const State> state_;
};

/// Writes a checkpoint's weights as shards of at most `shard_bytes` with an index (or one model.safetensors),
/// named as transformers names them, streaming. Everything is written beside; `commit` renames the shards and
/// then the index into place. config.json and the tokenizer's files are the caller's to write.
class CheckpointWriter {
 public:
  /// `specs` lists every tensor in the order in which bytes will come. A tensor larger than `shard_bytes`
  /// gets a shard of its own. Creates `directory` where it is missing. Throws `InvalidArgument` for specs
  /// that cannot be written, and where the directory already holds weights (model*.safetensors or their
  /// index): shards of two layouts side by side would leave a reader to guess, and weights that somebody has
  /// are not overwritten.
  CheckpointWriter(std::filesystem::path directory, std::vector<TensorSpec> specs,
                   std::uint64_t shard_bytes = std::uint64_t{5} << 30,
                   std::map<std::string, std::string> metadata = {{"format", "pt"}});
  ~CheckpointWriter();
  CheckpointWriter(CheckpointWriter&&) noexcept;
  CheckpointWriter& operator=(CheckpointWriter&&) noexcept;

  /// Appends bytes of the current tensor, and goes on to the next tensor and shard as they fill. Throws
  /// `InvalidArgument` where more comes than the specs hold, `IoError` where it cannot be written.
  void append(std::span<const std::byte> bytes);
  /// Throws `InvalidArgument` where bytes are missing, or where weights appeared in the directory meanwhile.
  void commit();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace modicum
