// SPDX-License-Identifier: Apache-2.0
#include "checkpoint_draft.hpp"

#include <cerrno>
#include <charconv>
#include <cstdio>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <modicum/base/atomic_file.hpp>
#include <modicum/base/error.hpp>

#include "../base/existing.hpp"
#include "../base/quote.hpp"
#include "../base/text_file.hpp"
#include "checkpoint_layout.hpp"
#include "checkpoint_state.hpp"
#include "safetensors_header.hpp"

namespace modicum {
namespace {

namespace fs = std::filesystem;

constexpr const char* kNote = ".finished";

int open_directory(const fs::path& path) {
  return ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
}

/// Room on disk where the file system can promise it.
int reserve(int descriptor, std::uint64_t bytes) {
#ifdef __linux__
  if (bytes == 0 || ::fallocate(descriptor, 0, 0, static_cast<off_t>(bytes)) == 0) return 0;
  if (errno != EOPNOTSUPP && errno != ENOSYS) return errno;
#endif
  return ::ftruncate(descriptor, static_cast<off_t>(bytes)) == 0 ? 0 : errno;
}

int write_all(int descriptor, std::uint64_t offset, std::span<const std::byte> bytes) {
  std::size_t done = 0;
  while (done < bytes.size()) {
    const auto count =
        ::pwrite(descriptor, bytes.data() + done, bytes.size() - done, static_cast<off_t>(offset + done));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return count < 0 ? errno : ENOSPC;
    done += static_cast<std::size_t>(count);
  }
  return 0;
}

}  // namespace

CheckpointDraft::CheckpointDraft(const fs::path& to, const std::vector<TensorSpec>& specs, Options options)
    : to_(settled(to)), options_(std::move(options)) {
  check_specs(specs);
  refuse_existing(to_, options_.kind);
  lay_out(specs);
  const fs::path above = options_.work.empty() ? to_.parent_path() : options_.work;
  const std::string prefix = "." + to_.filename().string() + "." + std::string(options_.kind) + "-";
  folder_ = above / (prefix + options_.key);
  for (const fs::path& path : {to_.parent_path(), folder_}) {
    std::error_code code;
    fs::create_directories(path, code);
    if (code) fail_io(path, "making", code.value());
  }
  lock();
  try {
    remove_others(prefix);
    if (!open_shards()) create_shards();
    read_note();
  } catch (...) {
    close();
    throw;
  }
}

CheckpointDraft::~CheckpointDraft() {
  close();
}

void CheckpointDraft::close() noexcept {
  for (Shard& shard : shards_) {
    if (shard.descriptor >= 0) ::close(std::exchange(shard.descriptor, -1));
  }
  if (lock_ < 0) return;
  std::error_code ignored;
  fs::remove_all(folder_, ignored);
  ::close(std::exchange(lock_, -1));
}

void CheckpointDraft::lay_out(const std::vector<TensorSpec>& specs) {
  const std::vector<std::vector<TensorSpec>> parts = split_into_shards(specs, options_.shard_bytes);
  for (std::size_t i = 0; i < parts.size(); ++i) {
    Shard shard{.path = shard_name(i, parts.size()),
                .header = header_bytes(parts[i], {{"format", "pt"}}, kTensorAlignment)};
    shard.bytes = shard.header.size();
    for (const TensorSpec& spec : parts[i]) {
      const std::uint64_t bytes = bytes_of(spec.dtype, spec.shape).bytes;
      places_.push_back({.shard = i, .begin = shard.bytes, .bytes = bytes});
      shard.bytes += bytes;
    }
    shards_.push_back(std::move(shard));
  }
  if (parts.size() > 1) index_ = index_json(parts);
}

void CheckpointDraft::lock() {
  lock_ = open_directory(folder_);
  if (lock_ < 0) fail_io(folder_, "opening", errno);
  if (::flock(lock_, LOCK_EX | LOCK_NB) == 0) return;
  ::close(std::exchange(lock_, -1));
  fail({.op = options_.kind,
        .what = quote(to_.string()),
        .expected = "an output that nobody else writes",
        .got = "another process at work on it",
        .todo = "wait for that one"});
}

void CheckpointDraft::remove_others(const std::string& prefix) const {
  std::error_code ignored;
  std::vector<fs::path> others;
  for (const auto& entry : fs::directory_iterator(folder_.parent_path(), ignored)) {
    const bool other = entry.path() != folder_ && entry.path().filename().string().starts_with(prefix);
    if (other) others.push_back(entry.path());
  }
  for (const fs::path& other : others) {
    const int descriptor = open_directory(other);
    if (descriptor < 0) continue;
    if (::flock(descriptor, LOCK_EX | LOCK_NB) == 0) fs::remove_all(other, ignored);
    ::close(descriptor);
  }
}

/// Whether all of them are there as this draft would have made them.
bool CheckpointDraft::open_shards() {
  for (Shard& shard : shards_) {
    shard.path = folder_ / shard.path;
    shard.descriptor = ::open(shard.path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    struct stat status{};
    if (shard.descriptor < 0 || ::fstat(shard.descriptor, &status) != 0 ||
        static_cast<std::uint64_t>(status.st_size) != shard.bytes) {
      return false;
    }
    std::string header(shard.header.size(), '\0');
    if (::pread(shard.descriptor, header.data(), header.size(), 0) != static_cast<ssize_t>(header.size()) ||
        header != shard.header) {
      return false;
    }
  }
  return true;
}

void CheckpointDraft::create_shards() {
  std::error_code ignored;
  fs::remove(folder_ / kNote, ignored);
  for (Shard& shard : shards_) {
    if (shard.descriptor >= 0) ::close(std::exchange(shard.descriptor, -1));
    if (!shard.path.has_parent_path()) shard.path = folder_ / shard.path;
    fs::remove_all(shard.path, ignored);
    shard.descriptor = ::open(shard.path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (shard.descriptor < 0) fail_io(shard.path, "creating", errno);
    ::fchmod(shard.descriptor, 0644);  // whatever the umask
    if (const int code = reserve(shard.descriptor, shard.bytes)) {
      fail_io(shard.path, "making room of " + std::to_string(shard.bytes) + " bytes for", code);
    }
    const int code = write_all(shard.descriptor, 0, std::as_bytes(std::span(shard.header)));
    if (code != 0) fail_io(shard.path, "writing", code);
  }
}

void CheckpointDraft::write(std::size_t tensor, std::uint64_t offset,
                            std::span<const std::byte> bytes) const {
  const Place& place = places_[tensor];
  if (offset > place.bytes || bytes.size() > place.bytes - offset) {
    fail({.op = options_.kind,
          .what = "tensor " + std::to_string(tensor),
          .expected = std::to_string(place.bytes) + " bytes",
          .got = std::to_string(bytes.size()) + " at " + std::to_string(offset)});
  }
  const Shard& shard = shards_[place.shard];
  const int code = write_all(shard.descriptor, place.begin + offset, bytes);
  if (code != 0) fail_io(shard.path, "writing", code);
}

void CheckpointDraft::finish(std::size_t tensor, std::string state) {
  unnoted_ += places_[tensor].bytes;
  finished_ = tensor + 1;
  state_ = std::move(state);
  if (unnoted_ >= options_.sync_bytes && finished_ < places_.size()) note();
}

void CheckpointDraft::sync(const Shard& shard) const {
  if (::fdatasync(shard.descriptor) != 0) fail_io(shard.path, "writing to disk", errno);
}

/// What is noted is on disk before the note is.
void CheckpointDraft::note() {
  for (const Shard& shard : shards_) sync(shard);
  AtomicFile file(folder_ / kNote);
  const std::string text = std::to_string(finished_) + "\n" + state_;
  file.write(std::as_bytes(std::span(text)));
  file.commit();
  unnoted_ = 0;
}

void CheckpointDraft::read_note() {
  if (!is_there(folder_ / kNote)) return;
  const std::string text = read_text(folder_ / kNote);
  std::size_t count = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), count);
  const bool whole = code == std::errc() && end != text.data() + text.size() && *end == '\n';
  if (!whole || count > places_.size()) return;
  finished_ = count;
  state_.assign(end + 1, text.data() + text.size());
}

void CheckpointDraft::commit() {
  if (finished_ != places_.size()) {
    fail({.op = options_.kind,
          .what = "weights of " + quote(to_.string()),
          .expected = std::to_string(places_.size()) + " tensors",
          .got = std::to_string(finished_)});
  }
  for (Shard& shard : shards_) sync(shard);
  if (!index_.empty()) {
    AtomicFile file(folder_ / kIndexFile);
    file.write(std::as_bytes(std::span(index_)));
    file.commit();
  }
  std::error_code ignored;
  fs::remove(folder_ / kNote, ignored);
  if (::fsync(lock_) != 0) fail_io(folder_, "writing to disk", errno);
  refuse_existing(to_, options_.kind);
  // Over an empty directory too; one that got a file in this moment makes it fail.
  if (std::rename(folder_.c_str(), to_.c_str()) != 0)
    fail_io(to_, "renaming the finished directory to", errno);
  ::close(std::exchange(lock_, -1));
  const int above = open_directory(to_.parent_path());
  if (above < 0) return;
  ::fsync(above);
  ::close(above);
}

void CheckpointDraft::fail_io(const fs::path& path, const std::string& step, int code) const {
  const bool full = code == ENOSPC || code == EDQUOT || code == EFBIG;
  fail<IoError>(
      {.op = options_.kind,
       .what = step + " " + quote(path.string()) + ", failed: " + std::generic_category().message(code),
       .todo = full ? "free some space and try again; nothing was left behind" : ""});
}

}  // namespace modicum
