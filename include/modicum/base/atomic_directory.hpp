// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>

namespace modicum {

/// A directory that appears whole or not at all: filled beside its path under a name of its own, then renamed
/// by `commit`. Without `commit` (an exception) it is removed with all that is in it; what a crash left is
/// removed by the next writer to the same path.
class AtomicDirectory {
 public:
  /// Creates the temporary, and the directories above where they are missing. Throws `InvalidArgument` where
  /// `path` is there and is not an empty directory, `IoError`.
  explicit AtomicDirectory(const std::filesystem::path& path);
  ~AtomicDirectory();
  AtomicDirectory(const AtomicDirectory&) = delete;
  AtomicDirectory& operator=(const AtomicDirectory&) = delete;

  /// Where files are written until `commit`.
  const std::filesystem::path& temporary() const noexcept { return temporary_; }
  /// Throws `InvalidArgument` where something appeared under the path meanwhile, `IoError`.
  void commit();

 private:
  [[noreturn]] void fail_io(const char* step, int code) const;

  std::filesystem::path path_;
  std::filesystem::path temporary_;
  int descriptor_ = -1;
};

}  // namespace modicum
