// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <new>

#include <sys/mman.h>

namespace modicum {

/// An allocator for large arrays that come and go: what a container frees is the system's again at once, where
/// malloc would keep it for the next. Containers below 64 kB take malloc's.
template <class T>
struct PageAllocator {
  using value_type = T;

  PageAllocator() = default;
  template <class U>
  PageAllocator(const PageAllocator<U>&) noexcept {}

  T* allocate(std::size_t count) {
    if (!is_large(count)) return static_cast<T*>(::operator new(count * sizeof(T)));
    void* const memory =
        ::mmap(nullptr, count * sizeof(T), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    return static_cast<T*>(memory);
  }
  void deallocate(T* memory, std::size_t count) noexcept {
    if (is_large(count)) {
      ::munmap(memory, count * sizeof(T));
    } else {
      ::operator delete(memory);
    }
  }

  bool operator==(const PageAllocator&) const noexcept { return true; }

 private:
  static constexpr bool is_large(std::size_t count) { return count * sizeof(T) >= std::size_t{64} << 10; }
};

}  // namespace modicum
