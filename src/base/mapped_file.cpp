// SPDX-License-Identifier: Apache-2.0
#include <cerrno>
#include <string>
#include <system_error>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <modicum/base/error.hpp>
#include <modicum/base/mapped_file.hpp>

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

/// A descriptor that closes itself.
struct Descriptor {
  int number;
  ~Descriptor() {
    if (number >= 0) ::close(number);
  }
};

}  // namespace

struct MappedFile::State {
  explicit State(const std::filesystem::path& file) : path(file) {
    // O_NONBLOCK: opening a named pipe must fail below, not wait for its writer.
    const Descriptor descriptor{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
    if (descriptor.number < 0) fail_io(path, "a file that can be read", error_text(errno));
    struct stat status{};
    if (::fstat(descriptor.number, &status) != 0) fail_io(path, "a file's status", error_text(errno));
    if (S_ISDIR(status.st_mode)) fail_io(path, "a regular file", "a directory");
    if (!S_ISREG(status.st_mode)) fail_io(path, "a regular file", "a device, pipe or socket");
    size = static_cast<std::size_t>(status.st_size);
    if (size == 0) return;  // mmap refuses an empty range
    void* mapping = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, descriptor.number, 0);
    if (mapping == MAP_FAILED) {
      fail_io(path, "room to map " + std::to_string(size) + " bytes", error_text(errno));
    }
    data = static_cast<const std::byte*>(mapping);
  }
  ~State() {
    if (data != nullptr) ::munmap(const_cast<std::byte*>(data), size);
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  std::filesystem::path path;
  const std::byte* data = nullptr;
  std::size_t size = 0;
};

MappedFile::MappedFile(const std::filesystem::path& path) : state_(std::make_shared<const State>(path)) {}

std::span<const std::byte> MappedFile::bytes() const noexcept {
  return state_ ? std::span(state_->data, state_->size) : std::span<const std::byte>();
}

const std::filesystem::path& MappedFile::path() const {
  static const std::filesystem::path kNone;
  return state_ ? state_->path : kNone;
}

}  // namespace modicum
