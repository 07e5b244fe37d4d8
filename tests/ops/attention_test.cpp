// SPDX-License-Identifier: Apache-2.0
#include "ops/attention_cases.hpp"

TEST_CASE("attention is the softmax of its formula for grouped heads, head sizes, dtypes and windows") {
  ThreadPool pool(2);
  for (const std::size_t group : {1, 2, 3, 7, 8}) {
    for (const std::size_t head_dim : {8, 20, 32, 64, 80, 96, 128, 256}) {
      const std::size_t variant = group + head_dim;
      const Shape shape{.heads = 2 * group,
                        .kv_heads = 2,
                        .head_dim = head_dim,
                        .dtype = variant % 3 == 0   ? DType::bf16
                                 : variant % 3 == 1 ? DType::f32
                                                    : DType::f16,
                        .window = variant % 2 == 0 ? std::size_t{0} : 37 + head_dim % 50};
      const std::vector<Group> groups{{{segment(shape, 0, 100), segment(shape, 100, 50)}, 100, 50}};
      const Queries queries(shape, groups, 5);
      const auto want = reference(shape, queries, groups);
      for_each_isa([&](ops::Isa isa) {
        INFO(ops::name_of(isa) << " group " << group << " head_dim " << head_dim << " window "
                               << shape.window);
        require_close(run(pool, shape, queries, groups), want,
                      bound(isa, shape, kBound * static_cast<double>(head_dim + 64) / 64));
      });
    }
  }
}

TEST_CASE("windows of every size around a tile see exactly their keys") {
  ThreadPool pool(1);
  for (const std::size_t window : {1, 2, 63, 64, 65, 128, 199, 200, 201}) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      const Shape shape{.heads = 2,
                        .kv_heads = 1,
                        .head_dim = dtype == DType::f32 ? std::size_t{8} : std::size_t{32},
                        .dtype = dtype,
                        .window = window};
      const std::vector<Group> groups{{{segment(shape, 0, 200)}, 0, 200}};
      const Queries queries(shape, groups, 6);
      const auto want = reference(shape, queries, groups);
      for_each_isa([&](ops::Isa isa) {
        INFO(ops::name_of(isa) << " " << name_of(dtype) << " window " << window);
        require_close(run(pool, shape, queries, groups), want, bound(isa, shape));
      });
    }
  }
}

TEST_CASE(
    "a query's result is the same for any split of its keys and queries, and for any number of threads") {
  ThreadPool one(1), three(3);
  for (const Shape& shape : kShapes) {
    const auto whole = segment(shape, 0, 170);
    const std::vector<Group> groups{{{whole}, 0, 170}};
    const Queries queries(shape, groups, 8);
    const std::size_t width = shape.heads * shape.head_dim;
    for_each_isa([&](ops::Isa isa) {
      INFO(ops::name_of(isa) << " head_dim " << shape.head_dim);
      const auto all = run(one, shape, queries, groups);
      REQUIRE(all == run(three, shape, queries, groups));
      for (const std::size_t first : {0, 1, 31, 32, 33, 63, 64, 65, 127, 128, 169}) {
        std::vector<Group> part{{{whole}, first, 170 - first}};
        Queries fewer(shape, part, 8);
        fewer.rotated[0].assign(queries.rotated[0].begin() + static_cast<std::ptrdiff_t>(first * width),
                                queries.rotated[0].end());
        const auto rest = run(one, shape, fewer, part);
        REQUIRE(
            std::equal(rest.begin(), rest.end(), all.begin() + static_cast<std::ptrdiff_t>(first * width)));
      }
    });
  }
}

TEST_CASE("thousands of keys, shared among threads or not, give one result") {
  ThreadPool one(1), four(4);
  for (const std::size_t window : {0, 2100}) {
    const Shape shape{.heads = 2, .kv_heads = 1, .head_dim = 32, .dtype = DType::bf16, .window = window};
    const auto trunk = segment(shape, 0, 4200);
    const std::vector<Group> groups{{{trunk, segment(shape, 4200, 3, 0, 5)}, 4200, 3},
                                    {{trunk, segment(shape, 4200, 1, 0, 6)}, 4200, 1},
                                    {{trunk}, 2040, 12}};
    const Queries queries(shape, groups, 14);
    const auto want = reference(shape, queries, groups);
    for_each_isa([&](ops::Isa isa) {
      INFO(ops::name_of(isa) << " window " << window);
      const auto alone = run(one, shape, queries, groups);
      REQUIRE(alone == run(four, shape, queries, groups));
      require_close(alone, want, bound(isa, shape, 1e-5));
    });
  }
}

TEST_CASE("keys in many short runs give what one run gives, bit for bit") {
  ThreadPool pool(2);
  const DType dtype = GENERATE(DType::f16, DType::bf16);
  const Shape shape{.heads = 4, .kv_heads = 2, .head_dim = 64, .dtype = dtype};
  const auto whole = segment(shape, 0, 150);
  const std::vector<Group> groups{{{whole}, 149, 1}};
  const Queries queries(shape, groups, 9);
  Tiles in_one(groups[0].path);
  Tiles in_many(groups[0].path);
  in_many.split_runs();
  const ops::AttentionShape a{
      .heads = 4, .kv_heads = 2, .head_dim = 64, .kv_dtype = dtype, .layer = 1, .scale = 0.3f};
  const auto q = queries.views();
  for_each_isa([&](ops::Isa) {
    std::vector<std::vector<float>> results;
    for (const Tiles* tiles : {&in_one, &in_many}) {
      const ops::QueryGroup group[] = {{.row = 0, .count = 1, .position = 149, .tiles = tiles->list}};
      results.emplace_back(4 * 64);
      ops::attention(pool, a, q, group, results.back().data());
    }
    REQUIRE(results[0] == results[1]);
  });
}

TEST_CASE("branches that share a trunk, and others beside them, each get what they would get alone") {
  ThreadPool pool(2);
  for (const std::size_t window : {0, 50}) {
    const std::size_t head_dim = GENERATE(16, 64);
    const Shape shape{
        .heads = 8, .kv_heads = 2, .head_dim = head_dim, .dtype = DType::bf16, .window = window};
    const auto trunk = segment(shape, 0, 140);
    const std::vector<Group> groups{{{trunk, segment(shape, 140, 5, 0, 10)}, 140, 5},
                                    {{trunk, segment(shape, 140, 1, 0, 20)}, 140, 1},
                                    {{segment(shape, 0, 70, 0, 30)}, 0, 70},
                                    {{trunk, segment(shape, 140, 60, 0, 40)}, 180, 20},
                                    {{trunk}, 139, 1}};
    const Queries queries(shape, groups, 11);
    const auto want = reference(shape, queries, groups);
    const std::size_t width = shape.heads * shape.head_dim;
    for_each_isa([&](ops::Isa isa) {
      INFO(ops::name_of(isa) << " window " << window);
      const auto together = run(pool, shape, queries, groups);
      require_close(together, want, bound(isa, shape));
      std::size_t row = 0;
      for (const Group& group : groups) {
        Queries own(shape, {group}, 11);
        const auto begin = static_cast<std::ptrdiff_t>(row * width);
        own.rotated[0].assign(
            queries.rotated[0].begin() + begin,
            queries.rotated[0].begin() + begin + static_cast<std::ptrdiff_t>(group.count * width));
        const auto alone = run(pool, shape, own, {group});
        REQUIRE(std::equal(alone.begin(), alone.end(), together.begin() + begin));
        row += group.count;
      }
    });
  }
}

TEST_CASE(
    "keys that count their rotation from their own first token serve at any offset, within f32 rounding") {
  ThreadPool pool(2);
  for (const std::size_t offset : {1, 15, 64, 100, 130}) {
    const DType dtype = GENERATE(DType::f32, DType::bf16);
    const Shape shape{.heads = 4, .kv_heads = 1, .head_dim = 64, .dtype = dtype};
    const std::vector<Group> groups{
        {{segment(shape, 0, offset), segment(shape, offset, 90, offset), segment(shape, offset + 90, 33)},
         offset + 90,
         33}};
    const Queries queries(shape, groups, 12);
    const auto want = reference(shape, queries, groups);
    for_each_isa([&](ops::Isa isa) {
      INFO(ops::name_of(isa) << " offset " << offset);
      require_close(run(pool, shape, queries, groups), want, bound(isa, shape, 2e-5));
    });
  }
}

TEST_CASE("scores of hundreds do not overflow") {
  ThreadPool pool(1);
  const Shape shape{.heads = 1, .kv_heads = 1, .head_dim = 8};
  const std::vector<Group> groups{{{segment(shape, 0, 100)}, 0, 100}};
  Queries queries(shape, groups, 13);
  for (float& q : queries.rotated[0]) q *= 400.0f;
  for_each_isa([&](ops::Isa) {
    for (const float value : run(pool, shape, queries, groups)) REQUIRE(std::fabs(value) <= 1.0f);
  });
}
