// SPDX-License-Identifier: Apache-2.0
#include <modicum/ops/machine.hpp>

#include "ops/random_matrix.hpp"
#include "support/catch.hpp"

using namespace modicum;

TEST_CASE("The machine's limits are measured for every instruction set") {
  ThreadPool pool(2);
  for_each_isa([&](ops::Isa isa) {
    INFO(ops::name_of(isa));
    const ops::MachineLimits limits = ops::machine_limits(pool);
    for (const double limit : {limits.read, limits.f32, limits.bf16, limits.int8}) {
      REQUIRE(limit > 1e6);
      REQUIRE(limit < 1e16);
    }
  });
}

TEST_CASE("Read bandwidth is measured for any size and number of threads") {
  for (const std::size_t threads : {1, 3}) {
    ThreadPool pool(threads);
    for (const std::size_t size : {std::size_t{0}, std::size_t{1}, std::size_t{10} << 20}) {
      REQUIRE(ops::read_bandwidth(pool, size) > 1e6);
    }
  }
}
