// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>

namespace modicum {

/// A file mapped read-only. Copies share one mapping, which lives as long as the last of them. The mapping
/// follows the file that was opened: a later rename over its path leaves it as it is. Replace such a file by
/// renaming
/// (`AtomicFile`), never by truncating it: pages beyond a new, nearer end can no longer be read.
class MappedFile {
 public:
  MappedFile() = default;
  /// Maps the whole of `path`; an empty file gives no bytes. Throws `IoError` where it cannot be opened or is
  /// no regular file.
  explicit MappedFile(const std::filesystem::path& path);

  std::span<const std::byte> bytes() const noexcept;
  const std::filesystem::path& path() const;
  /// Keeps the mapping alive; for views that outlive this object.
  std::shared_ptr<const void> owner() const noexcept { return state_; }

 private:
  struct State;
  std::shared_ptr<const State> state_;
};

}  // namespace modicum
