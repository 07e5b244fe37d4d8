// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <exception>
#include <fstream>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include <sched.h>

#include <modicum/base/thread_pool.hpp>

namespace modicum {
namespace {

constexpr std::size_t kLine = 64;
constexpr std::size_t kMostTasks = (std::size_t{1} << 20) - 1;
constexpr int kSpins =
    4000;  // about 20 to 100 microseconds: longer than the gap between two loops of one layer

thread_local bool inside_task = false;

inline void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

/// One loop's state in a word, so that a worker that wakes late can never take a task of the wrong loop:
/// generation (24 bits), count (20), next (20).
struct Ticket {
  std::uint64_t word = 0;
  std::size_t count() const { return (word >> 20) & kMostTasks; }
  std::size_t next() const { return word & kMostTasks; }
};

}  // namespace

struct ThreadPool::State {
  std::mutex one_loop_at_a_time;
  // What is written for each task, at a loop's end and at its beginning lies on lines of its own, so that
  // threads that spin on one do not slow down those that write another.
  alignas(kLine) std::atomic<std::uint64_t> ticket{0};
  std::atomic<const std::function<void(std::size_t)>*> task{nullptr};
  alignas(kLine) std::atomic<std::size_t> done{0};
  alignas(kLine) std::atomic<std::uint32_t> epoch{0};
  std::atomic<int> sleepers{0};
  std::atomic<bool> stopping{false};
  std::mutex exception_mutex;
  std::exception_ptr exception;
  std::vector<std::thread> workers;

  bool take_one() {
    Ticket seen{ticket.load(std::memory_order_acquire)};
    do {
      if (seen.next() >= seen.count()) return false;
    } while (!ticket.compare_exchange_weak(seen.word, seen.word + 1, std::memory_order_acq_rel));
    // The loop cannot end before this task has, so its function is still there.
    try {
      (*task.load(std::memory_order_acquire))(seen.next());
    } catch (...) {
      const std::lock_guard lock(exception_mutex);
      if (!exception) exception = std::current_exception();
    }
    return true;
  }

  /// Takes tasks until there are none, and only then counts them. The loop cannot end before that, so all are
  /// of one loop.
  void take_all() {
    std::size_t taken = 0;
    while (take_one()) ++taken;
    if (taken > 0) done.fetch_add(taken, std::memory_order_acq_rel);
  }

  void work() {
    inside_task = true;
    while (!stopping.load(std::memory_order_acquire)) {
      const std::uint32_t seen = epoch.load();
      take_all();
      for (int i = 0; i < kSpins && epoch.load(std::memory_order_relaxed) == seen; ++i) pause_briefly();
      if (epoch.load() != seen) continue;
      sleepers.fetch_add(1);
      epoch.wait(seen);
      sleepers.fetch_sub(1);
    }
  }

  void wake() {
    epoch.fetch_add(1);
    if (sleepers.load() > 0) epoch.notify_all();
  }

  void loop(std::size_t first, std::size_t count, const std::function<void(std::size_t)>& body) {
    const std::function<void(std::size_t)> shifted = [&](std::size_t i) { body(first + i); };
    const auto* chosen = first == 0 ? &body : &shifted;
    done.store(0, std::memory_order_relaxed);
    task.store(chosen, std::memory_order_release);
    const std::uint64_t generation = (ticket.load(std::memory_order_relaxed) >> 40) + 1;
    ticket.store(generation << 40 | static_cast<std::uint64_t>(count) << 20, std::memory_order_release);
    wake();
    inside_task = true;
    take_all();
    inside_task = false;
    for (int spins = 0; done.load(std::memory_order_acquire) < count; ++spins) {
      if (spins < kSpins) {
        pause_briefly();
      } else {
        std::this_thread::yield();
      }
    }
  }
};

ThreadPool::ThreadPool(std::size_t threads) : state_(std::make_unique<State>()) {
  if (threads == 0) threads = usable_processors();
  for (std::size_t i = 1; i < threads; ++i) {
    state_->workers.emplace_back([state = state_.get()] { state->work(); });
  }
}

ThreadPool::~ThreadPool() {
  state_->stopping.store(true);
  state_->epoch.fetch_add(1);
  state_->epoch.notify_all();
  for (std::thread& worker : state_->workers) worker.join();
}

std::size_t ThreadPool::size() const noexcept {
  return state_->workers.size() + 1;
}

void ThreadPool::run(std::size_t count, const std::function<void(std::size_t)>& task) {
  if (inside_task || count == 1 || size() == 1) {
    for (std::size_t i = 0; i < count; ++i) task(i);
    return;
  }
  const std::lock_guard turn(state_->one_loop_at_a_time);
  for (std::size_t first = 0; first < count; first += kMostTasks) {
    state_->loop(first, std::min(kMostTasks, count - first), task);
  }
  std::exception_ptr thrown;
  std::swap(thrown, state_->exception);
  if (thrown) std::rethrow_exception(thrown);
}

std::size_t usable_processors() {
  std::size_t count = std::max(1u, std::thread::hardware_concurrency());
  cpu_set_t affinity;
  CPU_ZERO(&affinity);
  if (sched_getaffinity(0, sizeof affinity, &affinity) == 0) {
    count = static_cast<std::size_t>(std::max(1, CPU_COUNT(&affinity)));
  }
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  std::string quota;
  double period = 0;
  if (file >> quota >> period && quota != "max" && period > 0) {
    const double share = std::ceil(std::atof(quota.c_str()) / period);
    if (share >= 1) count = std::min(count, static_cast<std::size_t>(share));
  }
  return count;
}

}  // namespace modicum
