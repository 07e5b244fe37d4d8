// SPDX-License-Identifier: Apache-2.0
#include <cerrno>
#include <cstdio>
#include <string>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <modicum/base/atomic_directory.hpp>
#include <modicum/base/error.hpp>

#include "existing.hpp"
#include "quote.hpp"
#include "temporary.hpp"

namespace modicum {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kOp = "directory.write";

int open_directory(const fs::path& path) {
  return ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
}

/// Removes what crashed writers left; a live writer holds a lock on its temporary.
void remove_leftovers(const fs::path& path) {
  const std::string stem = stem_of(path);
  std::error_code ignored;
  for (fs::directory_iterator entry(directory_of(path), ignored), end; !ignored && entry != end;
       entry.increment(ignored)) {
    if (!is_temporary(entry->path().filename().string(), stem)) continue;
    const int descriptor = open_directory(entry->path());
    if (descriptor < 0) continue;
    std::error_code removal;
    if (::flock(descriptor, LOCK_EX | LOCK_NB) == 0) fs::remove_all(entry->path(), removal);
    ::close(descriptor);
  }
}

}  // namespace

AtomicDirectory::AtomicDirectory(const fs::path& path) {
  path_ = settled(path);
  refuse_existing(path_, kOp);
  std::error_code code;
  fs::create_directories(path_.parent_path(), code);
  if (code) fail_io("creating the directory above it", code.value());
  remove_leftovers(path_);
  while (descriptor_ < 0) {
    temporary_ = temporary_of(path_);
    if (::mkdir(temporary_.c_str(), 0777) != 0) {
      if (errno == EEXIST || errno == EINTR) continue;
      fail_io("creating a temporary beside it", errno);
    }
    descriptor_ = open_directory(temporary_);
    if (descriptor_ < 0 && errno != ENOENT) fail_io("opening a temporary beside it", errno);
    if (descriptor_ >= 0 && !claim(descriptor_)) ::close(std::exchange(descriptor_, -1));
  }
}

AtomicDirectory::~AtomicDirectory() {
  if (descriptor_ < 0) return;
  std::error_code ignored;
  fs::remove_all(temporary_, ignored);
  ::close(descriptor_);
}

void AtomicDirectory::commit() {
  refuse_existing(path_, kOp);
  if (::fsync(descriptor_) != 0) fail_io("writing it to disk", errno);
  // Over an empty directory too; one that got a file in this moment makes it fail.
  if (std::rename(temporary_.c_str(), path_.c_str()) != 0) fail_io("renaming it into place", errno);
  ::close(std::exchange(descriptor_, -1));
  const int above = ::open(path_.parent_path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (above < 0) return;
  ::fsync(above);
  ::close(above);
}

void AtomicDirectory::fail_io(const char* step, int code) const {
  fail<IoError>(
      {.op = kOp,
       .what = quote(path_.string()) + ", " + step + ", failed: " + std::generic_category().message(code)});
}

}  // namespace modicum
