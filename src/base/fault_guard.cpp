// SPDX-License-Identifier: Apache-2.0
#include "fault_guard.hpp"

#if defined(__linux__) && defined(__LP64__)
#define MODICUM_HAS_FAULT_GUARD 1
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <mutex>

#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace modicum {

#ifdef MODICUM_HAS_FAULT_GUARD

/// `version` is odd while `begin` and `end` change, so that a handler that looks at a slot which another
/// thread gives to another mapping never takes the begin of one with the end of the other.
struct FaultGuard::Slot {
  std::atomic<bool> taken{false};
  std::atomic<bool> damaged{false};
  std::atomic<std::uint32_t> version{0};
  std::atomic<std::uintptr_t> begin{0};
  std::atomic<std::uintptr_t> end{0};

  void set(std::uintptr_t first, std::uintptr_t last) {
    version.fetch_add(1, std::memory_order_acq_rel);
    begin.store(first, std::memory_order_release);
    end.store(last, std::memory_order_release);
    version.fetch_add(1, std::memory_order_release);
  }

  /// The end of the mapping that `address` lies in, or 0. The slot of a mapping that is being read stays as
  /// it is, so whatever changes meanwhile is another's.
  std::uintptr_t end_around(std::uintptr_t address) const {
    const std::uint32_t before = version.load(std::memory_order_acquire);
    const std::uintptr_t first = begin.load(std::memory_order_acquire);
    const std::uintptr_t last = end.load(std::memory_order_acquire);
    const bool stable = before % 2 == 0 && version.load(std::memory_order_relaxed) == before;
    return stable && first <= address && address < last ? last : 0;
  }
};

/// Everything here has static storage and no destructor: the handler may run at any time until the process
/// is gone, and takes no lock.
struct FaultRegistry {
  using Slot = FaultGuard::Slot;

  static inline constinit std::array<Slot, kMostGuards> slots{};
  static inline struct sigaction former{};
  static inline std::uintptr_t page = 0;

  static Slot* take() {
    for (Slot& slot : slots) {
      if (!slot.taken.load(std::memory_order_relaxed) &&
          !slot.taken.exchange(true, std::memory_order_acquire)) {
        return &slot;
      }
    }
    return nullptr;
  }

  /// Puts zeros in the place of what cannot be read: all to the mapping's end rather than one page, because a
  /// process may have only some ten thousand mappings, and what lies behind the end of a file is gone as
  /// well.
  static bool replace(std::uintptr_t address) {
    for (Slot& slot : slots) {
      const std::uintptr_t end = slot.end_around(address);
      if (end == 0) continue;
      // Before the zeros can be seen, by other threads too.
      slot.damaged.store(true);
      const std::uintptr_t first = address / page * page;
      // The system call itself: sanitizers replace mmap by what a handler may not call.
      const long mapped = ::syscall(SYS_mmap, first, end - first, PROT_READ,
                                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
      return mapped == static_cast<long>(first);
    }
    return false;
  }

  static void hand_on(int signal, siginfo_t* info, void* context) {
    if ((former.sa_flags & SA_SIGINFO) != 0) {
      former.sa_sigaction(signal, info, context);
      return;
    }
    const bool sent = info->si_code <= 0;  // by kill() and the like, rather than by a fault
    if (former.sa_handler == SIG_IGN && sent) return;
    if (former.sa_handler != SIG_DFL && former.sa_handler != SIG_IGN) {
      former.sa_handler(signal);
      return;
    }
    struct sigaction standard{};
    standard.sa_handler = SIG_DFL;
    ::sigaction(signal, &standard, nullptr);
    // A fault comes again as soon as this returns; what was sent must be sent again.
    if (sent) ::raise(signal);
  }

  static void handle(int signal, siginfo_t* info, void* context) {
    const int code = errno;
    const bool ours = info->si_code == BUS_ADRERR && replace(reinterpret_cast<std::uintptr_t>(info->si_addr));
    if (!ours) hand_on(signal, info, context);
    errno = code;
  }

  static void install() {
    static std::once_flag once;
    std::call_once(once, [] {
      page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
      // Read before ours is set, so that a fault in between finds it.
      ::sigaction(SIGBUS, nullptr, &former);
      struct sigaction action{};
      action.sa_sigaction = handle;
      action.sa_mask = former.sa_mask;
      action.sa_flags = SA_SIGINFO | SA_ONSTACK;
      ::sigaction(SIGBUS, &action, nullptr);
    });
  }
};

FaultGuard::FaultGuard(const void* data, std::size_t size) {
  if (size == 0) return;
  FaultRegistry::install();
  slot_ = FaultRegistry::take();
  if (slot_ == nullptr) return;
  slot_->damaged.store(false);
  const auto begin = reinterpret_cast<std::uintptr_t>(data);
  slot_->set(begin, begin + size);
}

FaultGuard::~FaultGuard() {
  if (slot_ == nullptr) return;
  slot_->set(0, 0);
  slot_->taken.store(false, std::memory_order_release);
}

bool FaultGuard::damaged() const noexcept {
  return slot_ != nullptr && slot_->damaged.load();
}

#else

struct FaultGuard::Slot {};
FaultGuard::FaultGuard(const void*, std::size_t) {}
FaultGuard::~FaultGuard() = default;
bool FaultGuard::damaged() const noexcept {
  return false;
}

#endif

}  // namespace modicum
