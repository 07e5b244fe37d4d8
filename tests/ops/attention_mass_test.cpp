// SPDX-License-Identifier: Apache-2.0
#include <modicum/ops/attention_mass.hpp>

#include "ops/attention_cases.hpp"

namespace {

/// Up to the last position that a query sees; writing beyond it faults.
std::vector<float> mass(ThreadPool& pool, const Shape& shape, const Queries& queries,
                        const std::vector<Group>& groups, float before = 0.0f) {
  std::size_t positions = 0;
  for (const Group& group : groups) positions = std::max(positions, group.position + group.count);
  GuardedArray<float> all(positions);
  std::fill(all.begin(), all.end(), before);
  with_views(shape, queries, groups, [&](const auto& a, const auto& q, const auto& views) {
    ops::attention_mass(pool, a, q, views, all.data());
  });
  REQUIRE(all.front_is_intact());
  return {all.begin(), all.end()};
}

std::vector<double> mass_reference(const Shape& shape, const Queries& queries,
                                   const std::vector<Group>& groups) {
  std::vector<double> all;
  std::size_t row = 0;
  for (const Group& group : groups) {
    for (std::size_t i = 0; i < group.count; ++i, ++row) {
      for (std::size_t h = 0; h < shape.heads; ++h) {
        const auto weight = weights(shape, queries, group, i, row, h);
        all.resize(std::max(all.size(), weight.size()));
        for (std::size_t p = 0; p < weight.size(); ++p) all[p] += weight[p];
      }
    }
  }
  return all;
}

}  // namespace

TEST_CASE("the mass of a position is the sum of its softmax weights, for every dtype, head size and window") {
  ThreadPool pool(2);
  for (const std::size_t head_dim : {8, 20, 64, 256}) {
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
      for (const std::size_t window : {0, 90}) {
        const Shape shape{.heads = 6, .kv_heads = 2, .head_dim = head_dim, .dtype = dtype, .window = window};
        const std::vector<Group> groups{{{segment(shape, 0, 100), segment(shape, 100, 90, 0, 3, 8),
                                          segment(shape, 190, 80, 0, 4, 4), segment(shape, 270, 40)},
                                         260,
                                         45}};
        const Queries queries(shape, groups, 31);
        const auto want = mass_reference(shape, queries, groups);
        for_each_isa([&](ops::Isa isa) {
          INFO(ops::name_of(isa) << " " << name_of(dtype) << " head_dim " << head_dim << " window "
                                 << window);
          require_close(mass(pool, shape, queries, groups), want, 5e-5);
        });
      }
    }
  }
}

TEST_CASE("mass is added over groups and rotations, to what is there") {
  ThreadPool pool(2);
  const Shape shape{.heads = 4, .kv_heads = 2, .head_dim = 32, .dtype = DType::bf16};
  const auto trunk = segment(shape, 0, 140);
  const std::vector<Group> groups{{{trunk, segment(shape, 140, 90, 140, 10, 8)}, 200, 30},
                                  {{trunk, segment(shape, 140, 1, 0, 20)}, 140, 1},
                                  {{segment(shape, 0, 70, 0, 30)}, 0, 70}};
  const Queries queries(shape, groups, 32);
  auto want = mass_reference(shape, queries, groups);
  double sum = 0;
  for (double& m : want) {
    sum += m;
    m += 0.5;
  }
  REQUIRE(std::fabs(sum - 101 * 4) < 1e-9);
  for_each_isa([&](ops::Isa isa) {
    INFO(ops::name_of(isa));
    require_close(mass(pool, shape, queries, groups, 0.5f), want, 5e-5);
  });
}

TEST_CASE("mass over thousands of keys is the same for any number of threads") {
  ThreadPool one(1), four(4);
  const int bits = GENERATE(0, 8, 4);
  const Shape shape{.heads = 2, .kv_heads = 1, .head_dim = 32, .dtype = DType::bf16};
  const std::vector<Group> groups{
      {{segment(shape, 0, 4200, 0, 1, bits), segment(shape, 4200, 60)}, 4200, 40}};
  const Queries queries(shape, groups, 33);
  const auto want = mass_reference(shape, queries, groups);
  for_each_isa([&](ops::Isa isa) {
    INFO(ops::name_of(isa) << " " << bits << " bits");
    const auto alone = mass(one, shape, queries, groups);
    REQUIRE(alone == mass(four, shape, queries, groups));
    require_close(alone, want, 1e-5);
  });
}

TEST_CASE("no queries leave the mass as it was") {
  ThreadPool pool(1);
  const ops::AttentionShape shape{.heads = 2, .kv_heads = 1, .head_dim = 8};
  ops::attention_mass(pool, shape, {}, {}, nullptr);
}
