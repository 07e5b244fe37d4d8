// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

namespace modicum {

/// A file that appears whole or not at all: written beside its path under a name of its own, then fsynced and
/// renamed by `commit`. Without `commit` (an exception, a crash) the old file stays; the leftover is removed by the
/// destructor or, after a crash, by the next writer to the same path. Two writers at once do not disturb each
/// other: the last to commit wins.
class AtomicFile {
 public:
  /// Opens the temporary beside `path` with permission bits `mode`. Throws `IoError`.
  explicit AtomicFile(std::filesystem::path path, unsigned mode = 0644);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  /// Appends `bytes`. Throws `IoError` (disk full, say) and leaves the old file as it was.
  void write(std::span<const std::byte> bytes);
  /// Overwrites bytes that were written before, at `offset`.
  void write_at(std::uint64_t offset, std::span<const std::byte> bytes);
  std::uint64_t size() const noexcept { return size_; }

  /// fsync, rename over `path`, fsync of the directory.
  void commit();

 private:
  std::filesystem::path path_;
  std::filesystem::path temporary_;
  int descriptor_ = -1;
  std::uint64_t size_ = 0;
};

}  // namespace modicum
