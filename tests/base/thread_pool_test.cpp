// SPDX-License-Identifier: Apache-2.0
#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

#include <modicum/base/thread_pool.hpp>

#include "support/catch.hpp"

using modicum::ThreadPool;

TEST_CASE("every task runs exactly once, for any number of threads and tasks") {
  for (const std::size_t threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    REQUIRE(pool.size() == threads);
    for (const std::size_t count : {0, 1, 2, 7, 100, 5000}) {
      std::vector<std::atomic<int>> runs(count);
      pool.run(count, [&](std::size_t i) { runs[i].fetch_add(1); });
      for (const auto& n : runs) REQUIRE(n.load() == 1);
    }
  }
}

TEST_CASE("many short loops in a row neither hang nor lose a task") {
  ThreadPool pool(4);
  std::atomic<std::size_t> total{0};
  for (int i = 0; i < 20000; ++i) pool.run(3, [&](std::size_t) { total.fetch_add(1); });
  REQUIRE(total.load() == 60000);
}

TEST_CASE("the first exception of a task reaches the caller and the pool lives on") {
  ThreadPool pool(3);
  REQUIRE_THROWS_AS(pool.run(10,
                             [](std::size_t i) {
                               if (i == 7) throw std::runtime_error("seven");
                             }),
                    std::runtime_error);
  std::atomic<int> runs{0};
  pool.run(10, [&](std::size_t) { runs.fetch_add(1); });
  REQUIRE(runs.load() == 10);
}

TEST_CASE("a loop inside a task runs in that task, and loops of several threads take turns") {
  ThreadPool pool(2);
  std::atomic<int> inner{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; ++caller) {
    callers.emplace_back([&] {
      for (int i = 0; i < 50; ++i) {
        pool.run(4, [&](std::size_t) { pool.run(2, [&](std::size_t) { inner.fetch_add(1); }); });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  REQUIRE(inner.load() == 3 * 50 * 4 * 2);
}
