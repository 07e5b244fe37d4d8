// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>

namespace modicum {

/// Whether reading survives that somebody truncates the file.
enum class Guard { no, yes };

/// What tells a file from another, and from itself before it was written to.
struct FileIdentity {
  std::uint64_t device = 0;
  std::uint64_t inode = 0;
  std::uint64_t size = 0;
  std::int64_t modified_ns = 0;  ///< since 1970, as are those below
  std::int64_t changed_ns = 0;   ///< of the status, which no program can set back
  bool operator==(const FileIdentity&) const = default;

  /// Of what `path` names now; all zero where that cannot be told.
  static FileIdentity of(const std::filesystem::path& path) noexcept;
};

/// A file mapped read-only. Copies share one mapping, which lives as long as the last of them. The mapping
/// follows the file that was opened: a later rename over its path leaves it as it is. Replace such a file by
/// renaming (`AtomicFile`), never by truncating it: pages beyond a new, nearer end can no longer be read, and
/// without a guard the system ends a process that tries (SIGBUS).
///
/// On Linux a guarded file reads as zeros there instead, and says so afterwards: whoever has computed with
/// its bytes asks `damaged` and `unchanged` before the result counts. The first guarded file installs a
/// handler of SIGBUS for the process; what is not about a guarded file goes to the handler that was there.
class MappedFile {
 public:
  MappedFile() = default;
  /// Maps the whole of `path`; an empty file gives no bytes. Throws `IoError` where it cannot be opened or is
  /// no regular file.
  explicit MappedFile(const std::filesystem::path& path, Guard guard = Guard::no);

  std::span<const std::byte> bytes() const noexcept;
  const std::filesystem::path& path() const;
  /// As it was when the file was opened.
  const FileIdentity& identity() const;
  /// Keeps the mapping alive; for views that outlive this object.
  std::shared_ptr<const void> owner() const noexcept { return state_; }

  /// Whether a guard is in force: asked for, on a system that has it, and within the 512 that a process may
  /// have at a time. Without one a file is as a plain one.
  bool guarded() const noexcept;
  /// Whether a read met a page that is gone (the file was truncated, or the disk cannot read it), so that
  /// zeros were seen. Never true again false.
  bool damaged() const noexcept;
  /// Whether size and time of modification are those of the opening: false as soon as the file was truncated
  /// or written to, seen by a reader or not. Of a file that was opened without `Guard::yes` nothing is known,
  /// and this is true. A system call: not for every token.
  bool unchanged() const noexcept;

 private:
  struct State;
  std::shared_ptr<const State> state_;
};

}  // namespace modicum
