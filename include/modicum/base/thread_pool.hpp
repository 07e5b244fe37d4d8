// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

namespace modicum {

/// A small pool for fork-join loops. Which thread runs which task is left open, so a task's result must not
/// depend on it; every kernel here computes a row in one fixed order, whoever computes it.
class ThreadPool {
 public:
  /// `threads` counts the caller; 0 means the processors that this process may use (affinity and cgroup
  /// quota).
  explicit ThreadPool(std::size_t threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  std::size_t size() const noexcept;

  /// Calls `task(i)` once for each i < count, over all threads, and returns when all are done. The first
  /// exception is rethrown here. Calls from several threads take turns; a call from inside a task runs in
  /// that task alone.
  void run(std::size_t count, const std::function<void(std::size_t)>& task);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// The processors that this process may use: its affinity mask, bounded by a cgroup's CPU quota. At least 1.
std::size_t usable_processors();

}  // namespace modicum
