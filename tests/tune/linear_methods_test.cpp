// SPDX-License-Identifier: Apache-2.0
#include <modicum/base/error.hpp>
#include <modicum/tune/slerp.hpp>

#include "grid.hpp"
#include "support/catch.hpp"

using namespace modicum;
using namespace modicum::tune;
using Catch::Matchers::Contains;

namespace {

constexpr std::size_t kCount = 20'000;  // two tiles of arrays

MergePlan plan_of(Method method, std::vector<double> weights) {
  MergePlan plan{.method = method, .base = method == Method::linear ? "" : "base"};
  for (const double weight : weights) plan.models.push_back({.model = "m", .weight = weight});
  return plan;
}

double norm(const Floats& x) {
  double squares = 0;
  for (const float value : x) squares += static_cast<double>(value) * value;
  return std::sqrt(squares);
}

double largest_difference(const Floats& a, const Floats& b) {
  double most = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    most = std::max(most, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
  return most;
}

}  // namespace

TEST_CASE("task arithmetic adds weighted differences, times lambda") {
  const Floats base = grid(kCount, 1);
  const std::vector<Floats> models = {grid(kCount, 2), grid(kCount, 3)};
  MergePlan plan = plan_of(Method::task_arithmetic, {0.5, -1.5});
  plan.lambda = 0.25;
  Floats expected = weighted_sum({minus(models[0], base), minus(models[1], base)}, {0.5f, -1.5f});
  for (std::size_t i = 0; i < kCount; ++i) expected[i] = base[i] + 0.25f * expected[i];
  CHECK(merged(plan, base, models) == expected);
}

TEST_CASE("normalised differences are divided by the sum of weights, unless that is nothing") {
  const Floats base = grid(kCount, 1);
  const std::vector<Floats> models = {grid(kCount, 2), grid(kCount, 3)};
  MergePlan plan = plan_of(Method::task_arithmetic, {0.5, 1.5});
  plan.normalize = true;
  Floats expected = weighted_sum({minus(models[0], base), minus(models[1], base)}, {0.5f, 1.5f});
  for (std::size_t i = 0; i < kCount; ++i) expected[i] = base[i] + expected[i] / 2.0f;
  CHECK(merged(plan, base, models) == expected);
  plan = plan_of(Method::task_arithmetic, {0.5, -0.5});
  plan.normalize = true;
  expected = weighted_sum({minus(models[0], base), minus(models[1], base)}, {0.5f, -0.5f});
  CHECK(merged(plan, base, models) == plus(base, expected));
}

TEST_CASE("a linear merge is the weighted mean, or the sum where that is asked for") {
  const std::vector<Floats> models = {grid(kCount, 2), grid(kCount, 3), grid(kCount, 4)};
  MergePlan plan = plan_of(Method::linear, {1, 0.5, 2.5});
  Floats sum = weighted_sum(models, {1.0f, 0.5f, 2.5f}), mean = sum;
  for (float& value : mean) value /= 4.0f;
  CHECK(merged(plan, {}, models) == mean);
  plan.normalize = false;
  CHECK(merged(plan, {}, models) == sum);
}

TEST_CASE("slerp goes along the arc between two tensors") {
  const Floats a = grid(kCount, 1), b = grid(kCount, 2);
  double ab = 0;
  for (std::size_t i = 0; i < kCount; ++i) ab += static_cast<double>(a[i]) * b[i];
  const double angle = std::acos(ab / norm(a) / norm(b));
  REQUIRE(angle > 0.1);
  MergePlan plan = plan_of(Method::slerp, {1});
  for (const double t : {0.0, 0.3, 1.0}) {
    plan.t = t;
    Floats expected(kCount);
    for (std::size_t i = 0; i < kCount; ++i) {
      expected[i] = static_cast<float>((std::sin((1 - t) * angle) * a[i] + std::sin(t * angle) * b[i]) /
                                       std::sin(angle));
    }
    CHECK(largest_difference(merged(plan, a, {b}), expected) < 1e-6);
  }
  plan.t = 0.0;
  CHECK(largest_difference(merged(plan, a, {b}), a) == 0);
}

TEST_CASE("slerp between vectors of one length keeps the length, where a straight line would not") {
  const Floats a = {1, 0}, b = {0, 1};
  const Floats half = merged(plan_of(Method::slerp, {1}), a, {b});
  CHECK(norm(half) == Approx(1));
  CHECK(half[0] == Approx(std::sqrt(0.5)));
}

TEST_CASE("slerp between vectors that are almost parallel, opposite or zero is a straight line") {
  const Floats a = grid(kCount, 1);
  Floats near = a, opposite = a;
  for (std::size_t i = 0; i < kCount; ++i) near[i] *= i % 2 == 0 ? 3.0f : 3.0625f;
  for (float& value : opposite) value *= -0.5f;
  MergePlan plan = plan_of(Method::slerp, {1});
  plan.t = 0.25;
  for (const Floats& b : {near, opposite, Floats(kCount)}) {
    const Floats expected = weighted_sum({a, b}, {0.75f, 0.25f});
    // All numbers stay, which an angle of almost 0 or π would not let them.
    if (b == Floats(kCount)) {
      for (const float value : merged(plan, a, {b})) REQUIRE(std::isfinite(value));
    } else {
      CHECK(largest_difference(merged(plan, a, {b}), expected) < 1e-6);
    }
  }
}

TEST_CASE("arrays that do not fit the plan or each other are refused") {
  ThreadPool pool(1);
  const Floats three = {1, 2, 3}, four = {1, 2, 3, 4};
  Floats out(3);
  const MergePlan plan = plan_of(Method::task_arithmetic, {1, 1});
  CHECK_THROWS_AS(merge_arrays(plan, "x", three, {three}, out, pool), InvalidArgument);
  CHECK_THROWS_WITH(merge_arrays(plan, "x", three, {three}, out, pool), Contains("2 models"));
  CHECK_THROWS_WITH(merge_arrays(plan, "x", {}, {three, three}, out, pool), Contains("a base"));
  CHECK_THROWS_AS(merge_arrays(plan, "x", three, {three, four}, out, pool), InvalidArgument);
  CHECK_THROWS_AS(merge_arrays(plan, "x", four, {three, three}, out, pool), InvalidArgument);
  CHECK_THROWS_AS(merge_arrays(plan, "x", four, {four, four}, out, pool), InvalidArgument);
}

TEST_CASE("a plan that no models could fit is refused for arrays too") {
  ThreadPool pool(1);
  const Floats one = {1};
  Floats out(1);
  MergePlan plan = plan_of(Method::ties, {1});
  plan.definition = Definition::paper;
  plan.models[0].density = Setting({{"mlp", {0.5}}});
  CHECK_THROWS_AS(merge_arrays(plan, "x", one, {one}, out, pool), InvalidArgument);
  CHECK_THROWS_AS(merge_arrays(MergePlan{.method = Method::linear}, "x", {}, {}, out, pool), InvalidArgument);
}

TEST_CASE("every method gives the same numbers with one thread and with several") {
  constexpr std::size_t kLong = 100'000;
  const Floats base = grid(kLong, 1);
  const std::vector<Floats> two = {grid(kLong, 2), grid(kLong, 3)};
  for (const Method method :
       {Method::linear, Method::slerp, Method::task_arithmetic, Method::ties, Method::magnitude_prune,
        Method::dare_linear, Method::dare_ties, Method::breadcrumbs, Method::breadcrumbs_ties}) {
    for (const Definition definition : {Definition::mergekit, Definition::peft, Definition::paper}) {
      MergePlan plan =
          plan_of(method, method == Method::slerp ? std::vector<double>{1} : std::vector<double>{1, 1});
      plan.definition = definition;
      for (MergeInput& input : plan.models) {
        input.density = 0.3;
        input.gamma = 0.1;
      }
      const std::vector<Floats> models(two.begin(), two.begin() + (method == Method::slerp ? 1 : 2));
      const Floats expected = merged(plan, base, models);
      INFO(name_of(method));
      CHECK(merged(plan, base, models, 3) == expected);
    }
  }
}
