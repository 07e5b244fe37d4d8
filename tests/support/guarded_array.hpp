// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstring>
#include <new>
#include <span>

#include <sys/mman.h>
#include <unistd.h>

/// `count` elements that end where an unreadable page begins, filled with a pattern before them: reading or
/// writing beyond the end faults, and `front_is_intact` tells whether something wrote before the beginning.
template <class T>
class GuardedArray {
 public:
  explicit GuardedArray(std::size_t count) : count_(count) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t bytes = (count * sizeof(T) + 2 * page - 1) / page * page;
    size_ = bytes + page;
    base_ = static_cast<std::byte*>(
        mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED || mprotect(base_ + bytes, page, PROT_NONE) != 0) throw std::bad_alloc();
    front_ = bytes - count * sizeof(T);
    std::memset(base_, kPattern, front_);
  }
  ~GuardedArray() { munmap(base_, size_); }
  GuardedArray(const GuardedArray&) = delete;
  GuardedArray& operator=(const GuardedArray&) = delete;

  T* data() { return reinterpret_cast<T*>(base_ + front_); }
  const T* data() const { return reinterpret_cast<const T*>(base_ + front_); }
  std::size_t size() const { return count_; }
  T& operator[](std::size_t i) { return data()[i]; }
  const T& operator[](std::size_t i) const { return data()[i]; }
  T* begin() { return data(); }
  T* end() { return data() + count_; }

  bool front_is_intact() const {
    for (std::size_t i = 0; i < front_; ++i) {
      if (base_[i] != std::byte{kPattern}) return false;
    }
    return true;
  }

 private:
  static constexpr unsigned char kPattern = 0x5a;
  std::size_t count_;
  std::size_t size_ = 0;
  std::size_t front_ = 0;
  std::byte* base_ = nullptr;
};
