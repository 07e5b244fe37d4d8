// SPDX-License-Identifier: Apache-2.0
// Survives reads of mapped pages that are gone: the file was truncated, or the disk cannot read them.
#pragma once

#include <cstddef>

namespace modicum {

/// Mappings that are guarded at one time; further ones are not.
inline constexpr std::size_t kMostGuards = 512;

/// While it lives, a read of [data, data + size) that raises SIGBUS is answered with zeros, from the page
/// that is gone to the mapping's end, and remembered. The first guard installs the process's handler, which
/// hands on to the former one what is not ours. Does nothing where the system is not Linux, or beyond
/// `kMostGuards`. To be destroyed before the mapping.
class FaultGuard {
 public:
  FaultGuard() = default;
  FaultGuard(const void* data, std::size_t size);
  ~FaultGuard();
  FaultGuard(const FaultGuard&) = delete;
  FaultGuard& operator=(const FaultGuard&) = delete;

  bool active() const noexcept { return slot_ != nullptr; }
  bool damaged() const noexcept;

 private:
  struct Slot;
  friend struct FaultRegistry;
  Slot* slot_ = nullptr;
};

}  // namespace modicum
