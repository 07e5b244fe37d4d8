// SPDX-License-Identifier: Apache-2.0
#include <cerrno>
#include <string_view>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <modicum/base/atomic_file.hpp>
#include <modicum/base/error.hpp>

#include "quote.hpp"
#include "temporary.hpp"

namespace modicum {
namespace {

/// Removes what crashed writers left. A live writer holds a lock on its temporary, which the system releases
/// when the process ends, however it ends.
void remove_leftovers(const std::filesystem::path& path) {
  const std::string stem = stem_of(path);
  std::error_code ignored;
  for (std::filesystem::directory_iterator entry(directory_of(path), ignored), end; !ignored && entry != end;
       entry.increment(ignored)) {
    if (!is_temporary(entry->path().filename().string(), stem)) continue;
    const int descriptor = ::open(entry->path().c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (descriptor < 0) continue;
    if (::flock(descriptor, LOCK_EX | LOCK_NB) == 0) ::unlink(entry->path().c_str());
    ::close(descriptor);
  }
}

}  // namespace

AtomicFile::AtomicFile(std::filesystem::path path, unsigned mode) : path_(std::move(path)) {
  if (!path_.has_filename()) {
    fail({.op = "file.write", .what = "path", .expected = "a file name", .got = quote(path_.string())});
  }
  remove_leftovers(path_);
  while (descriptor_ < 0) {
    temporary_ = temporary_of(path_);
    descriptor_ = ::open(temporary_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (descriptor_ < 0 && errno != EEXIST && errno != EINTR)
      fail_io("creating a temporary beside it", errno);
    if (descriptor_ >= 0 && !claim(descriptor_)) ::close(std::exchange(descriptor_, -1));
  }
  // After creation, because open() would take the umask's bits away.
  if (::fchmod(descriptor_, static_cast<mode_t>(mode & 07777u)) != 0) {
    const int code = errno;
    ::unlink(temporary_.c_str());
    ::close(std::exchange(descriptor_, -1));
    fail_io("setting its permissions", code);
  }
}

AtomicFile::~AtomicFile() {
  if (descriptor_ < 0) return;
  ::unlink(temporary_.c_str());
  ::close(descriptor_);
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  put(size_, bytes);
  size_ += bytes.size();
}

void AtomicFile::write_at(std::uint64_t offset, std::span<const std::byte> bytes) {
  if (offset > size_ || bytes.size() > size_ - offset) {
    fail({.op = "file.write",
          .what = "offset in " + quote(path_.string()),
          .expected = "bytes written before, up to " + std::to_string(size_),
          .got = std::to_string(offset) + " + " + std::to_string(bytes.size())});
  }
  put(offset, bytes);
}

void AtomicFile::put(std::uint64_t offset, std::span<const std::byte> bytes) {
  if (descriptor_ < 0) fail({.op = "file.write", .what = quote(path_.string()) + " was committed before"});
  std::uint64_t done = 0;
  while (done < bytes.size()) {
    const auto count =
        ::pwrite(descriptor_, bytes.data() + done, bytes.size() - done, static_cast<off_t>(offset + done));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) {
      const int code = count < 0 ? errno : ENOSPC;
      fail_io("writing bytes " + std::to_string(offset) + " to " + std::to_string(offset + bytes.size()) +
                  ", of which " + std::to_string(done) + " could be written",
              code);
    }
    done += static_cast<std::uint64_t>(count);
  }
}

void AtomicFile::commit() {
  flush();
  rename();
}

void AtomicFile::commit_over(const FileIdentity& replaced) {
  flush();
  const int old = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  // Writers that derived their files from the same one take turns here; whoever comes second sees that.
  if (old >= 0) ::flock(old, LOCK_EX);
  const bool same = old >= 0 && FileIdentity::of(path_) == replaced;
  if (same) {
    try {
      rename();
    } catch (...) {
      ::close(old);
      throw;
    }
  }
  if (old >= 0) ::close(old);
  if (!same) {
    fail<IoError>({.op = "file.write",
                   .what = quote(path_.string()),
                   .expected = "the file that was opened for the change",
                   .got = "another, written meanwhile",
                   .todo = "repeat the change on what is there now"});
  }
}

void AtomicFile::flush() {
  if (descriptor_ < 0) fail({.op = "file.write", .what = quote(path_.string()) + " was committed before"});
  if (::fsync(descriptor_) != 0) fail_io("flushing " + std::to_string(size_) + " bytes to the disk", errno);
}

void AtomicFile::rename() {
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail_io("renaming the temporary", errno);
  ::close(std::exchange(descriptor_, -1));
  const int directory = ::open(directory_of(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory < 0) return;
  // Some file systems cannot fsync a directory (EINVAL); the rename has then been made as durable as they
  // can.
  ::fsync(directory);
  ::close(directory);
}

void AtomicFile::fail_io(const std::string& step, int code) const {
  fail<IoError>(
      {.op = "file.write",
       .what = quote(path_.string()) + ", " + step + ", failed: " + std::generic_category().message(code),
       .todo = code == ENOSPC || code == EDQUOT || code == EFBIG
                   ? "free some space and try again; a file that was there before is as it was"
                   : "a file that was there before is as it was"});
}

}  // namespace modicum
