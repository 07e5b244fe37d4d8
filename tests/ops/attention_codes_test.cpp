// SPDX-License-Identifier: Apache-2.0
// Attention over integer keys and values, against the softmax of what their codes stand for.
#include "ops/attention_cases.hpp"

namespace {

/// Attention over one path of segments whose bits are given (0: elements), one after another.
struct Mixed {
  struct Part {
    std::size_t count;
    int bits;
  };
  Mixed(const Shape& s, std::initializer_list<Part> parts, std::size_t queries) : shape(s) {
    std::size_t end = 0;
    for (const Part& part : parts) {
      group.path.push_back(segment(shape, end, part.count, 0, 1, part.bits));
      end += part.count;
    }
    group.position = end - queries;
    group.count = queries;
  }
  void check(ThreadPool& pool) const {
    const std::vector<Group> groups{group};
    const Queries all(shape, groups, 21);
    const auto want = reference(shape, all, groups);
    for_each_isa([&](ops::Isa isa) {
      INFO(ops::name_of(isa) << " head_dim " << shape.head_dim);
      require_close(run(pool, shape, all, groups), want,
                    bound(isa, shape, kBound * static_cast<double>(shape.head_dim + 64) / 64));
    });
  }
  Shape shape;
  Group group;
};

}  // namespace

TEST_CASE("integer keys and values count as what their codes stand for, for every head size and dtype") {
  ThreadPool pool(2);
  const int bits = GENERATE(8, 4);
  for (const std::size_t head_dim : {8, 10, 20, 32, 64, 80, 96, 128, 160, 256}) {
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
      const Shape shape{.heads = 6, .kv_heads = 2, .head_dim = head_dim, .dtype = dtype};
      INFO(bits << " bits, " << name_of(dtype));
      Mixed(shape, {{150, bits}}, 5).check(pool);
    }
  }
}

TEST_CASE("elements and integers share a tile, wherever their segments and groups begin") {
  ThreadPool pool(2);
  for (const Shape& shape : kShapes) {
    for (const std::size_t first : {1, 7, 16, 31, 63, 64, 100}) {
      INFO("integers from " << first);
      Mixed(shape, {{first, 0}, {130, 8}, {3, 0}, {70, 4}, {9, 0}}, 20).check(pool);
    }
  }
}

TEST_CASE("integer keys serve at any offset, windowed or not") {
  ThreadPool pool(2);
  const int bits = GENERATE(8, 4);
  for (const std::size_t offset : {15, 64, 100}) {
    for (const std::size_t window : {0, 70}) {
      const Shape shape{.heads = 4, .kv_heads = 1, .head_dim = 64, .dtype = DType::bf16, .window = window};
      const std::vector<Group> groups{
          {{segment(shape, 0, offset), segment(shape, offset, 90, offset, 1, bits),
            segment(shape, offset + 90, 33)},
           offset + 90,
           33}};
      const Queries queries(shape, groups, 12);
      const auto want = reference(shape, queries, groups);
      for_each_isa([&](ops::Isa isa) {
        INFO(ops::name_of(isa) << " offset " << offset << " window " << window);
        require_close(run(pool, shape, queries, groups), want, bound(isa, shape, 2e-5));
      });
    }
  }
}

TEST_CASE("integer keys in many short runs give what one run gives, bit for bit") {
  ThreadPool pool(2);
  const int bits = GENERATE(8, 4);
  for (const std::size_t head_dim : {20, 64}) {
    const Shape shape{.heads = 4, .kv_heads = 2, .head_dim = head_dim, .dtype = DType::bf16};
    // The second segment's groups of 64 rows begin within tiles.
    const std::vector<Group> groups{{{segment(shape, 0, 30), segment(shape, 30, 150, 0, 1, bits)}, 179, 1}};
    const Queries queries(shape, groups, 9);
    Tiles in_one(groups[0].path);
    Tiles in_many(groups[0].path);
    in_many.split_runs();
    const ops::AttentionShape a{
        .heads = 4, .kv_heads = 2, .head_dim = head_dim, .kv_dtype = DType::bf16, .layer = 1, .scale = 0.3f};
    const auto q = queries.views();
    for_each_isa([&](ops::Isa) {
      std::vector<std::vector<float>> results;
      for (const Tiles* tiles : {&in_one, &in_many}) {
        const ops::QueryGroup group[] = {{.row = 0, .count = 1, .position = 179, .tiles = tiles->list}};
        results.emplace_back(4 * head_dim);
        ops::attention(pool, a, q, group, results.back().data());
      }
      REQUIRE(results[0] == results[1]);
    });
  }
}

TEST_CASE("thousands of integer keys, shared among threads or not, give one result") {
  ThreadPool one(1), four(4);
  const int bits = GENERATE(8, 4);
  const Shape shape{.heads = 2, .kv_heads = 1, .head_dim = 32, .dtype = DType::bf16};
  const auto trunk = segment(shape, 0, 4200, 0, 1, bits);
  const std::vector<Group> groups{{{trunk, segment(shape, 4200, 3, 0, 5)}, 4200, 3},
                                  {{trunk, segment(shape, 4200, 1, 0, 6)}, 4200, 1}};
  const Queries queries(shape, groups, 14);
  const auto want = reference(shape, queries, groups);
  for_each_isa([&](ops::Isa isa) {
    INFO(ops::name_of(isa));
    const auto alone = run(one, shape, queries, groups);
    REQUIRE(alone == run(four, shape, queries, groups));
    require_close(alone, want, bound(isa, shape, 1e-5));
  });
}
