// SPDX-License-Identifier: Apache-2.0
#include <cerrno>
#include <cstdint>
#include <optional>
#include <string>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <modicum/base/error.hpp>
#include <modicum/base/mapped_file.hpp>

#include "fault_guard.hpp"
#include "quote.hpp"

namespace modicum {
namespace {

[[noreturn]] void fail_io(const std::filesystem::path& path, std::string expected, std::string got) {
  fail<IoError>({.op = "file.map",
                 .what = quote(path.string()),
                 .expected = std::move(expected),
                 .got = std::move(got)});
}

std::string error_text(int code) {
  return std::generic_category().message(code);
}

FileIdentity identity_of(const struct stat& status) {
#ifdef __APPLE__
  const timespec modified = status.st_mtimespec;
  const timespec changed = status.st_ctimespec;
#else
  const timespec modified = status.st_mtim;
  const timespec changed = status.st_ctim;
#endif
  const auto nanoseconds = [](const timespec& time) {
    return static_cast<std::int64_t>(time.tv_sec) * 1'000'000'000 + time.tv_nsec;
  };
  return {.device = static_cast<std::uint64_t>(status.st_dev),
          .inode = static_cast<std::uint64_t>(status.st_ino),
          .size = static_cast<std::uint64_t>(status.st_size),
          .modified_ns = nanoseconds(modified),
          .changed_ns = nanoseconds(changed)};
}

/// A descriptor that closes itself.
struct Descriptor {
  int number;
  ~Descriptor() { close(); }
  void close() {
    if (number >= 0) ::close(std::exchange(number, -1));
  }
};

/// A mapping that ends with it.
struct Mapping {
  const std::byte* data = nullptr;
  std::size_t size = 0;
  ~Mapping() {
    if (data != nullptr) ::munmap(const_cast<std::byte*>(data), size);
  }
};

}  // namespace

FileIdentity FileIdentity::of(const std::filesystem::path& path) noexcept {
  struct stat status{};
  return ::stat(path.c_str(), &status) == 0 ? identity_of(status) : FileIdentity{};
}

struct MappedFile::State {
  State(const std::filesystem::path& file, Guard wanted)
      : path(file),
        // O_NONBLOCK: opening a named pipe must fail below, not wait for its writer.
        descriptor{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)} {
    if (descriptor.number < 0) fail_io(path, "a file that can be read", error_text(errno));
    struct stat status{};
    if (::fstat(descriptor.number, &status) != 0) fail_io(path, "a file's status", error_text(errno));
    if (S_ISDIR(status.st_mode)) fail_io(path, "a regular file", "a directory");
    if (!S_ISREG(status.st_mode)) fail_io(path, "a regular file", "a device, pipe or socket");
    identity = identity_of(status);
    map();
    if (wanted == Guard::no) {
      descriptor.close();
    } else {
      guard.emplace(mapping.data, mapping.size);
    }
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  void map() {
    const auto size = static_cast<std::size_t>(identity.size);
    if (size == 0) return;  // mmap refuses an empty range
    void* data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, descriptor.number, 0);
    if (data == MAP_FAILED) {
      fail_io(path, "room to map " + std::to_string(size) + " bytes", error_text(errno));
    }
    mapping.data = static_cast<const std::byte*>(data);
    mapping.size = size;
  }

  std::filesystem::path path;
  Descriptor descriptor;  ///< kept open where there is a guard
  FileIdentity identity;
  Mapping mapping;
  std::optional<FaultGuard> guard;  ///< goes before the mapping
};

MappedFile::MappedFile(const std::filesystem::path& path, Guard guard)
    : state_(std::make_shared<const State>(path, guard)) {}

std::span<const std::byte> MappedFile::bytes() const noexcept {
  return state_ ? std::span(state_->mapping.data, state_->mapping.size) : std::span<const std::byte>();
}

const std::filesystem::path& MappedFile::path() const {
  static const std::filesystem::path kNone;
  return state_ ? state_->path : kNone;
}

const FileIdentity& MappedFile::identity() const {
  static const FileIdentity kNone;
  return state_ ? state_->identity : kNone;
}

bool MappedFile::guarded() const noexcept {
  return state_ && state_->guard && state_->guard->active();
}

bool MappedFile::damaged() const noexcept {
  return state_ && state_->guard && state_->guard->damaged();
}

bool MappedFile::unchanged() const noexcept {
  if (!state_ || state_->descriptor.number < 0) return true;
  struct stat status{};
  if (::fstat(state_->descriptor.number, &status) != 0) return false;
  const FileIdentity now = identity_of(status);
  // Not the status time, which a rename over the path changes and which says nothing about the bytes.
  return now.size == state_->identity.size && now.modified_ns == state_->identity.modified_ns;
}

}  // namespace modicum
