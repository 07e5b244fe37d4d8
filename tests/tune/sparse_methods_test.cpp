// SPDX-License-Identifier: Apache-2.0
#include <set>

#include <modicum/tune/dare.hpp>

#include "grid.hpp"
#include "support/catch.hpp"

using namespace modicum;
using namespace modicum::tune;

namespace {

constexpr std::size_t kCount = 40'000;  // three tiles of arrays

const Floats& base() {
  static const Floats values = grid(kCount, 1);
  return values;
}

const std::vector<Floats>& models() {
  static const std::vector<Floats> values = {grid(kCount, 2), grid(kCount, 3), grid(kCount, 4)};
  return values;
}

std::vector<Floats> deltas() {
  std::vector<Floats> out;
  for (const Floats& model : models()) out.push_back(minus(model, base()));
  return out;
}

MergePlan plan_of(Method method, Definition definition, double density, std::vector<double> weights) {
  MergePlan plan{.method = method, .definition = definition, .base = "base"};
  for (const double weight : weights) {
    plan.models.push_back({.model = "m", .weight = weight, .density = density});
  }
  return plan;
}

/// Differences of TIES as its paper's code trims them: as many as are at least as large as the kth smallest
/// of all, equal ones included.
Floats trimmed_by_value(const Floats& delta, double density) {
  const auto kept = static_cast<std::size_t>(density * static_cast<double>(delta.size()));
  const std::size_t k = std::max<std::size_t>(1, delta.size() - kept);
  const float least = std::abs(delta[ascending(delta)[k - 1]]);
  Floats out(delta.size());
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = std::abs(delta[i]) >= least ? delta[i] : 0.0f;
  return out;
}

float majority(const std::vector<Floats>& x) {
  long vote = 0;
  const Floats sums = weighted_sum(x, Floats(x.size(), 1.0f));
  for (const float sum : sums) vote += (sum > 0 ? 1 : 0) - (sum < 0 ? 1 : 0);
  return vote >= 0 ? 1.0f : -1.0f;
}

void check_near(const Floats& got, const Floats& expected) {
  REQUIRE(got.size() == expected.size());
  double most = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    most = std::max(most, std::abs(static_cast<double>(got[i]) - static_cast<double>(expected[i])));
  }
  CHECK(most < 1e-5);
}

/// What DARE leaves of the differences of model number `m`.
Floats dropped(const Floats& delta, const KeepMask& mask, double density, Rescale rescale) {
  double all = 0, kept = 0;
  for (std::size_t i = 0; i < delta.size(); ++i) {
    all += std::abs(delta[i]);
    kept += mask(i) ? std::abs(delta[i]) : 0.0f;
  }
  const double scale = rescale == Rescale::none ? 1 : rescale == Rescale::l1_norm ? all / kept : 1 / density;
  Floats out(delta.size());
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = mask(i) ? static_cast<float>(delta[i] * scale) : 0.0f;
  return out;
}

/// What breadcrumbs leave: neither the ⌊gamma · n⌋ largest nor more than ⌊density · n⌋ of the others.
Floats banded(const Floats& delta, double density, double gamma) {
  const auto n = static_cast<double>(delta.size());
  const auto kept = static_cast<std::size_t>(density * n);
  const std::size_t top = std::min(static_cast<std::size_t>(gamma * n), delta.size() - kept);
  const std::vector<std::size_t> order = ascending(delta);
  Floats out(delta.size());
  for (std::size_t i = delta.size() - top - kept; i < delta.size() - top; ++i) {
    out[order[i]] = delta[order[i]];
  }
  return out;
}

}  // namespace

TEST_CASE("TIES of mergekit trims, elects signs from weighted differences, divides by agreeing weights") {
  const Floats weights = {0.5f, 1.0f, 1.5f};
  for (const double density : {0.0, 1e-9, 0.2, 0.55, 1.0}) {
    MergePlan plan = plan_of(Method::ties, Definition::mergekit, density, {0.5, 1, 1.5});
    std::vector<Floats> thin;
    for (const Floats& delta : deltas()) {
      const auto count = static_cast<std::size_t>(density * kCount);
      thin.push_back(trimmed(delta, density > 0 ? std::max<std::size_t>(1, count) : 0));
    }
    INFO("density " << density);
    CHECK(merged(plan, base(), models(), 2) ==
          plus(base(), elected(thin, weights, Definition::mergekit, true)));
    plan.normalize = false;
    CHECK(merged(plan, base(), models()) ==
          plus(base(), elected(thin, weights, Definition::mergekit, false)));
  }
}

TEST_CASE("a negative weight votes against its model's differences") {
  MergePlan plan = plan_of(Method::ties, Definition::mergekit, 1.0, {1, -0.5, 0.25});
  plan.normalize = false;
  CHECK(merged(plan, base(), models()) ==
        plus(base(), elected(deltas(), {1.0f, -0.5f, 0.25f}, Definition::mergekit, false)));
}

TEST_CASE("TIES of PEFT elects signs from the differences alone and divides by how many agree") {
  for (const double density : {0.2, 1.0}) {
    const MergePlan plan = plan_of(Method::ties, Definition::peft, density, {0.5, 1, 1.5});
    std::vector<Floats> thin;
    for (const Floats& delta : deltas())
      thin.push_back(trimmed(delta, static_cast<std::size_t>(density * kCount)));
    CHECK(merged(plan, base(), models()) ==
          plus(base(), elected(thin, {0.5f, 1.0f, 1.5f}, Definition::peft, true)));
  }
}

TEST_CASE("TIES of the paper keeps equal differences together and lets the majority decide ties") {
  bool positive = false, negative = false;
  for (const bool mirrored : {false, true}) {
    Floats from = base();
    std::vector<Floats> tuned = models();
    if (mirrored) {
      for (float& value : from) value = -value;
      for (Floats& model : tuned) {
        for (float& value : model) value = -value;
      }
    }
    MergePlan plan = plan_of(Method::ties, Definition::paper, 0.3, {1, 1, 1});
    plan.lambda = 0.5;
    std::vector<Floats> thin;
    for (const Floats& model : tuned) thin.push_back(trimmed_by_value(minus(model, from), 0.3));
    const float tie = majority(thin);
    (tie > 0 ? positive : negative) = true;
    Floats change = elected(thin, {1, 1, 1}, Definition::paper, true, tie);
    for (float& value : change) value *= 0.5f;
    CHECK(merged(plan, from, tuned, 2) == plus(from, change));
  }
  // Else the majority's sign was not looked at.
  CHECK(positive);
  CHECK(negative);
}

TEST_CASE("magnitude pruning is trimming and a weighted sum") {
  const MergePlan plan = plan_of(Method::magnitude_prune, Definition::peft, 0.4, {0.5, 1, 1.5});
  std::vector<Floats> thin;
  for (const Floats& delta : deltas()) thin.push_back(trimmed(delta, kCount * 2 / 5));
  CHECK(merged(plan, base(), models()) == plus(base(), weighted_sum(thin, {0.5f, 1.0f, 1.5f})));
}

TEST_CASE("breadcrumbs leave a band of middle magnitudes") {
  for (const auto& [density, gamma] :
       {std::pair{0.5, 0.1}, {0.9, 0.3}, {0.25, 0.0}, {0.0, 0.1}, {1.0, 0.5}}) {
    INFO("density " << density << ", gamma " << gamma);
    MergePlan plan = plan_of(Method::breadcrumbs, Definition::mergekit, density, {0.5, 1, 1.5});
    for (MergeInput& input : plan.models) input.gamma = gamma;
    std::vector<Floats> thin;
    for (const Floats& delta : deltas()) thin.push_back(banded(delta, density, gamma));
    CHECK(merged(plan, base(), models(), 2) == plus(base(), weighted_sum(thin, {0.5f, 1.0f, 1.5f})));
    plan.method = Method::breadcrumbs_ties;
    CHECK(merged(plan, base(), models(), 2) ==
          plus(base(), elected(thin, {0.5f, 1.0f, 1.5f}, Definition::mergekit, false)));
  }
}

TEST_CASE("the mask is SplitMix64's sequence, 32 bits an element") {
  // The generator's first numbers from 0: e220a839 7b1dcdaf, 6e789e6a a1b965f4.
  const KeepMask half(0, 0.5);
  CHECK(half(0));
  CHECK_FALSE(half(1));
  CHECK_FALSE(half(2));
  CHECK(half(3));
}

TEST_CASE("a mask keeps its share, and is read alike from any element on") {
  constexpr std::size_t kLong = 200'000;
  for (const double density : {0.0, 0.03, 0.5, 0.9, 1.0}) {
    const KeepMask mask(42, density);
    std::vector<float> whole(kLong);
    mask.fill(0, kLong, whole.data());
    const double kept = std::accumulate(whole.begin(), whole.end(), 0.0);
    // Five standard deviations.
    CHECK(std::abs(kept - density * kLong) <= 5 * std::sqrt(kLong * density * (1 - density)));
    for (std::size_t i = 0; i < 1000; ++i) REQUIRE((whole[i] == 1.0f) == mask(i));
    for (const auto& [first, count] : {std::pair<std::size_t, std::size_t>{1, 1}, {3, 8}, {4, 7}, {5, 0}}) {
      Floats part(count);
      mask.fill(first, count, part.data());
      CHECK(part == Floats(whole.begin() + static_cast<std::ptrdiff_t>(first),
                           whole.begin() + static_cast<std::ptrdiff_t>(first + count)));
    }
  }
}

TEST_CASE("a mask's key differs by seed, tensor and model, and by nothing else") {
  CHECK(mask_key(1, "a", 0) == mask_key(1, "a", 0));
  const std::set<std::uint64_t> keys = {mask_key(1, "a", 0), mask_key(2, "a", 0), mask_key(1, "b", 0),
                                        mask_key(1, "a", 1)};
  CHECK(keys.size() == 4);
}

TEST_CASE("DARE drops by its mask and scales up what is left") {
  for (const Rescale rescale : {Rescale::none, Rescale::inverse_density, Rescale::l1_norm}) {
    MergePlan plan = plan_of(Method::dare_linear, Definition::mergekit, 0.5, {0.5, 1, 1.5});
    plan.models[1].density = 1.0;
    plan.rescale = rescale;
    plan.seed = 9;
    std::vector<Floats> thin = deltas();
    for (const std::size_t m : {0u, 2u}) {
      thin[m] = dropped(thin[m], KeepMask(mask_key(9, "x", m), 0.5), 0.5, rescale);
    }
    check_near(merged(plan, base(), models(), 2), plus(base(), weighted_sum(thin, {0.5f, 1.0f, 1.5f})));
    if (rescale == Rescale::l1_norm)
      continue;  // its factor rounds, and sums of almost 0 may elect either sign
    plan.method = Method::dare_ties;
    CHECK(merged(plan, base(), models(), 2) ==
          plus(base(), elected(thin, {0.5f, 1.0f, 1.5f}, Definition::mergekit, false)));
  }
}

TEST_CASE("without a word about it DARE rescales as its definition does") {
  for (const auto& [definition, rescale] : {std::pair{Definition::mergekit, Rescale::l1_norm},
                                            {Definition::peft, Rescale::inverse_density},
                                            {Definition::paper, Rescale::inverse_density}}) {
    MergePlan plan = plan_of(Method::dare_linear, definition, 0.5, {1, 1, 1});
    const Floats silent = merged(plan, base(), models());
    plan.rescale = rescale;
    CHECK(silent == merged(plan, base(), models()));
    plan.seed = 1;
    CHECK(silent != merged(plan, base(), models()));
  }
}

TEST_CASE("DARE that keeps nothing of a tensor leaves it as it is") {
  for (const Rescale rescale : {Rescale::none, Rescale::inverse_density, Rescale::l1_norm}) {
    MergePlan plan = plan_of(Method::dare_linear, Definition::mergekit, 0.0, {1, 1, 1});
    plan.rescale = rescale;
    CHECK(merged(plan, base(), models()) == base());
  }
}

TEST_CASE("tensors of no and of one element can be merged by every method") {
  for (const Method method :
       {Method::task_arithmetic, Method::ties, Method::magnitude_prune, Method::dare_linear,
        Method::dare_ties, Method::breadcrumbs, Method::breadcrumbs_ties}) {
    for (const Definition definition : {Definition::mergekit, Definition::peft, Definition::paper}) {
      const MergePlan plan = plan_of(method, definition, 0.5, {1});
      CHECK(merged(plan, {}, {Floats{}}).empty());
      const float one = merged(plan, {1.0f}, {Floats{3.0f}}).front();
      CHECK(std::isfinite(one));
    }
  }
}
