// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <random>
#include <span>
#include <vector>

#include <modicum/base/error.hpp>
#include <modicum/kv/arena.hpp>

#include "support/catch.hpp"

using namespace modicum;

namespace {

constexpr KvShape kShape{.layers = 2, .width = 4, .dtype = DType::bf16};

}  // namespace

TEST_CASE("rows that are handed out never overlap, and their memory keeps what was written") {
  KvArena arena(kShape);
  struct Held {
    std::vector<SlotRun> runs;
    std::byte mark;
  };
  const auto rows_of = [](const SlotRun& run, std::size_t layer) {
    const std::size_t at = layer * run.segment->layer_stride + run.first * kShape.row_bytes();
    return std::vector<std::span<std::byte>>{{run.segment->k + at, run.count * kShape.row_bytes()},
                                             {run.segment->v + at, run.count * kShape.row_bytes()}};
  };
  std::vector<Held> held;
  std::mt19937 random(1);
  std::size_t in_use = 0;
  for (int step = 0; step < 3000; ++step) {
    if (held.size() < 40 && random() % 5 < 3) {
      const std::size_t rows = 1 + random() % (random() % 20 == 0 ? 900 : 40);
      Held next{arena.allocate(rows), std::byte(step)};
      std::size_t got = 0;
      for (const SlotRun& run : next.runs) got += run.count;
      REQUIRE(got == rows);
      in_use += rows;
      for (const SlotRun& run : next.runs) {
        for (std::size_t layer = 0; layer < 2; ++layer) {
          for (const auto bytes : rows_of(run, layer)) std::fill(bytes.begin(), bytes.end(), next.mark);
        }
      }
      held.push_back(std::move(next));
    } else if (!held.empty()) {
      const std::size_t i = random() % held.size();
      for (const SlotRun& run : held[i].runs) {
        for (std::size_t layer = 0; layer < 2; ++layer) {
          for (const auto bytes : rows_of(run, layer)) {
            REQUIRE(std::all_of(bytes.begin(), bytes.end(), [&](std::byte b) { return b == held[i].mark; }));
          }
        }
        in_use -= run.count;
        arena.release(run);
      }
      held.erase(held.begin() + static_cast<std::ptrdiff_t>(i));
    }
    REQUIRE(arena.rows_in_use() == in_use);
    REQUIRE(arena.bytes_reserved() >= in_use * kShape.token_bytes());
  }
  for (const Held& one : held) {
    for (const SlotRun& run : one.runs) arena.release(run);
  }
  REQUIRE(arena.rows_in_use() == 0);
  REQUIRE(arena.bytes_reserved() == 0);
}

TEST_CASE("rows that came back are handed out again without more memory") {
  KvArena arena(kShape);
  const auto kept = arena.allocate(10);
  const std::size_t reserved = arena.bytes_reserved();
  for (int i = 0; i < 1000; ++i) {
    for (const SlotRun& run : arena.allocate(100)) arena.release(run);
  }
  REQUIRE(arena.bytes_reserved() == reserved);
  REQUIRE(arena.rows_in_use() == 10);
}

TEST_CASE("a bound on the bytes is kept: more is refused and nothing changes") {
  const std::size_t bound = 1000 * kShape.token_bytes();
  KvArena arena(kShape, bound);
  const auto first = arena.allocate(600);
  REQUIRE_THROWS_AS(arena.allocate(700), OutOfMemory);
  REQUIRE(arena.rows_in_use() == 600);
  REQUIRE(arena.bytes_reserved() <= bound);
  for (const SlotRun& run : first) arena.release(run);
  REQUIRE(arena.allocate(700).front().count == 700);
}

TEST_CASE("a bound can be used up to the last row") {
  KvArena arena(kShape, 1000 * kShape.token_bytes());
  std::size_t rows = 0;
  for (std::size_t step : {400, 100, 7}) {
    try {
      while (rows + step <= 1000) {
        arena.allocate(step);
        rows += step;
      }
    } catch (const OutOfMemory&) {
    }
  }
  while (rows < 1000) {
    arena.allocate(1);
    ++rows;
  }
  REQUIRE(arena.rows_in_use() == 1000);
  REQUIRE_THROWS_AS(arena.allocate(1), OutOfMemory);
}
