// SPDX-License-Identifier: Apache-2.0
// A checkpoint on its way into a directory, which a later process can go on with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <modicum/io/safetensors.hpp>

namespace modicum {

/// A directory with weights that appears whole or not at all, filled tensor by tensor in a hidden folder
/// beside it, `.<name>.<kind>-<key>`. Where a process is killed, the next one with the same key goes on after
/// the last tensor that was known to be on disk; one with another key removes what was left. Without `commit`
/// (an exception) the folder goes with all that is in it.
class CheckpointDraft {
 public:
  struct Options {
    std::string_view kind;            ///< of the operation, for errors and the folder's name
    std::string key;                  ///< of everything that decides which bytes come out
    std::filesystem::path work = {};  ///< where the folder is; empty: beside `to`. On the same file system.
    std::uint64_t shard_bytes = std::uint64_t{5} << 30;
    std::uint64_t sync_bytes = std::uint64_t{512} << 20;  ///< written between two notes of what is finished
  };

  /// `specs`: every tensor, in the order in which they will be finished. Takes room on disk for all of them.
  /// Throws `InvalidArgument` where `to` is there and is no empty directory, or another process is at work on
  /// it; `IoError` (no room, not permitted).
  CheckpointDraft(const std::filesystem::path& to, const std::vector<TensorSpec>& specs, Options options);
  ~CheckpointDraft();
  CheckpointDraft(const CheckpointDraft&) = delete;
  CheckpointDraft& operator=(const CheckpointDraft&) = delete;

  /// The first so many tensors are there already.
  std::size_t finished() const noexcept { return finished_; }
  /// Some bytes of a tensor, from `offset` on. Safe from several threads.
  void write(std::size_t tensor, std::uint64_t offset, std::span<const std::byte> bytes) const;
  /// All of `tensor` has been written, and of those before it. `state` is kept with the note of it, for
  /// whoever goes on.
  void finish(std::size_t tensor, std::string state = {});
  /// What was given with the last of the tensors that were there already.
  const std::string& state() const noexcept { return state_; }
  /// For the other files of the directory.
  const std::filesystem::path& directory() const noexcept { return folder_; }
  /// Everything to disk, then the rename. Throws `InvalidArgument` where tensors are missing or something
  /// appeared under the path meanwhile, `IoError`.
  void commit();

 private:
  struct Shard {
    std::filesystem::path path;
    int descriptor = -1;
    std::string header;
    std::uint64_t bytes = 0;  ///< of the whole file
  };
  struct Place {
    std::size_t shard = 0;
    std::uint64_t begin = 0;  ///< in the file
    std::uint64_t bytes = 0;
  };

  void lay_out(const std::vector<TensorSpec>& specs);
  void lock();
  void remove_others(const std::string& prefix) const;
  bool open_shards();
  void create_shards();
  void close() noexcept;
  void note();
  void sync(const Shard& shard) const;
  void read_note();
  [[noreturn]] void fail_io(const std::filesystem::path& path, const std::string& step, int code) const;

  std::filesystem::path to_;
  std::filesystem::path folder_;
  Options options_;
  int lock_ = -1;
  std::vector<Shard> shards_;
  std::vector<Place> places_;
  std::string index_;  ///< text of the index; empty with one shard
  std::size_t finished_ = 0;
  std::string state_;
  std::uint64_t unnoted_ = 0;  ///< bytes of tensors that are finished but not noted
};

}  // namespace modicum
