// SPDX-License-Identifier: Apache-2.0
#include "activation_file.hpp"

#include <cerrno>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <modicum/base/error.hpp>

#include "../base/quote.hpp"

namespace modicum::retrofit {
namespace {

[[noreturn]] void fail_io(const std::filesystem::path& path, const char* step, int code) {
  fail<IoError>({.op = "retrofit",
                 .what = std::string(step) + " " + quote(path.string()) +
                         ", failed: " + std::generic_category().message(code)});
}

struct Descriptor {
  int value = -1;
  ~Descriptor() {
    if (value >= 0) ::close(value);
  }
};

}  // namespace

ActivationFile::ActivationFile(const std::filesystem::path& path, int flags, std::size_t rows,
                               std::size_t width)
    : path_(path), width_(width), bytes_(rows * width * sizeof(float)) {
  const Descriptor file{::open(path.c_str(), flags | O_CLOEXEC, 0600)};
  if (file.value < 0) fail_io(path, "opening", errno);
  if ((flags & O_CREAT) != 0) {
    const int code = ::posix_fallocate(file.value, 0, static_cast<off_t>(bytes_));
    if (code != 0) {
      ::unlink(path.c_str());
      fail_io(path, "making room for", code);
    }
  }
  struct stat status{};
  if (::fstat(file.value, &status) != 0) fail_io(path, "reading", errno);
  if (static_cast<std::size_t>(status.st_size) != bytes_) {
    fail<FormatError>({.op = "retrofit",
                       .what = quote(path.string()),
                       .expected = std::to_string(bytes_) + " bytes",
                       .got = std::to_string(status.st_size)});
  }
  void* const data = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, file.value, 0);
  if (data == MAP_FAILED) fail_io(path, "mapping", errno);
  data_ = static_cast<float*>(data);
}

ActivationFile ActivationFile::create(const std::filesystem::path& path, std::size_t rows,
                                      std::size_t width) {
  return {path, O_RDWR | O_CREAT | O_TRUNC, rows, width};
}

ActivationFile ActivationFile::open(const std::filesystem::path& path, std::size_t rows, std::size_t width) {
  return {path, O_RDWR, rows, width};
}

ActivationFile::ActivationFile(ActivationFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      width_(other.width_),
      bytes_(other.bytes_) {}

ActivationFile& ActivationFile::operator=(ActivationFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(width_, other.width_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

ActivationFile::~ActivationFile() {
  if (data_ != nullptr) ::munmap(data_, bytes_);
}

void ActivationFile::sync() const {
  if (::msync(data_, bytes_, MS_SYNC) != 0) fail_io(path_, "writing", errno);
}

}  // namespace modicum::retrofit
