// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

#include <modicum/base/mapped_file.hpp>

namespace modicum {

/// A file that appears whole or not at all: written beside its path under a name of its own, then fsynced and
/// renamed by `commit`. Without `commit` (an exception, a crash) the old file stays; the leftover is removed
/// by the destructor or, after a crash, by the next writer to the same path. Two writers at once do not
/// disturb each other: the last to commit wins. Where `path` is a symbolic link, the link is replaced, not
/// what it points to.
class AtomicFile {
 public:
  /// Opens the temporary beside `path` with permission bits `mode`, whatever the umask. Throws `IoError`.
  explicit AtomicFile(std::filesystem::path path, unsigned mode = 0644);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  /// Appends `bytes`. Throws `IoError` (disk full, say) and leaves the old file as it was.
  void write(std::span<const std::byte> bytes);
  /// Overwrites bytes that were written before, at `offset`. Throws `InvalidArgument` beyond `size()`.
  void write_at(std::uint64_t offset, std::span<const std::byte> bytes);
  std::uint64_t size() const noexcept { return size_; }
  const std::filesystem::path& path() const noexcept { return path_; }

  /// fsync, rename over `path`, fsync of the directory. Nothing can be written after it.
  void commit();
  /// The same, but only where `path` still leads to `replaced`, which this file was derived from: throws
  /// `IoError` and changes nothing where another writer was faster, or wrote to that file in place.
  void commit_over(const FileIdentity& replaced);

 private:
  void flush();
  void rename();
  void put(std::uint64_t offset, std::span<const std::byte> bytes);
  [[noreturn]] void fail_io(const std::string& step, int code) const;

  std::filesystem::path path_;
  std::filesystem::path temporary_;
  int descriptor_ = -1;
  std::uint64_t size_ = 0;
};

}  // namespace modicum
