// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>
#include <numeric>
#include <set>
#include <vector>

#include <modicum/decode/processors.hpp>
#include <modicum/decode/sampling.hpp>

#include "support/catch.hpp"

using modicum::SamplingOptions;
using modicum::TokenId;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<TokenId> kept_tokens(std::vector<float> logits, const SamplingOptions& options) {
  std::vector<modicum::TokenLogit> kept;
  modicum::warp(logits, options, kept);
  std::vector<TokenId> tokens;
  for (const auto& t : kept) {
    tokens.push_back(t.token);
  }
  return tokens;
}

/// The filters by sorting everything in f64: top-k, then top-p of what it left, then min-p of that.
std::set<TokenId> kept_by_definition(const std::vector<float>& logits, const SamplingOptions& o) {
  std::vector<std::size_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0u);
  std::ranges::stable_sort(order, [&](auto a, auto b) { return logits[a] > logits[b]; });
  if (o.top_k > 0 && o.top_k < order.size()) {
    order.resize(o.top_k);
  }
  const auto weight = [&](std::size_t i) {
    return std::exp((static_cast<double>(logits[i]) - static_cast<double>(logits[order[0]])) / o.temperature);
  };
  double total = 0.0;
  for (const std::size_t i : order) {
    total += weight(i);
  }
  std::set<TokenId> kept;
  double above = 0.0;
  for (const std::size_t i : order) {
    const bool in_nucleus = o.top_p == 1.0 || kept.empty() || above < o.top_p * total;
    if (in_nucleus && weight(i) >= o.min_p) {
      kept.insert(static_cast<TokenId>(i));
    }
    above += weight(i);
  }
  return kept;
}

/// ln(1), ln(2), … ln(n): probabilities in the ratio 1 : 2 : … : n.
std::vector<float> proportional(int n) {
  std::vector<float> logits;
  for (int i = 1; i <= n; ++i) {
    logits.push_back(std::log(static_cast<float>(i)));
  }
  return logits;
}

}  // namespace

TEST_CASE("the generator gives the published sequence of xoshiro256** seeded by splitmix64") {
  modicum::Random random(0);
  CHECK(random.next() == 0x99ec5f36cb75f2b4u);
  CHECK(random.next() == 0xbf6e1f784956452au);
  CHECK(random.next() == 0x1a5f849d4933e6e0u);
  double least = 1.0, most = 0.0, sum = 0.0;
  for (int i = 0; i < 100000; ++i) {
    const double u = random.uniform();
    least = std::min(least, u);
    most = std::max(most, u);
    sum += u;
  }
  CHECK(least >= 0.0);
  CHECK(most < 1.0);
  CHECK(sum / 100000 == Approx(0.5).margin(0.005));
}

TEST_CASE("top-k keeps the k likeliest, and those equal to the last of them") {
  const std::vector<float> logits{1.0f, 5.0f, 3.0f, 3.0f, 2.0f};
  CHECK(kept_tokens(logits, {.top_k = 1}) == std::vector<TokenId>{1});
  CHECK(kept_tokens(logits, {.top_k = 2}) == std::vector<TokenId>{1, 2, 3});
  CHECK(kept_tokens(logits, {.top_k = 4}) == std::vector<TokenId>{1, 2, 3, 4});
  CHECK(kept_tokens(logits, {.top_k = 99}).size() == 5);
  CHECK(kept_tokens(logits, {}).size() == 5);
}

TEST_CASE("top-p keeps the fewest tokens that reach it, and at least one") {
  const std::vector<float> logits = proportional(4);  // 0.1, 0.2, 0.3, 0.4
  CHECK(kept_tokens(logits, {.top_p = 0.0}) == std::vector<TokenId>{3});
  CHECK(kept_tokens(logits, {.top_p = 0.39}) == std::vector<TokenId>{3});
  CHECK(kept_tokens(logits, {.top_p = 0.41}) == std::vector<TokenId>{2, 3});
  CHECK(kept_tokens(logits, {.top_p = 0.71}) == std::vector<TokenId>{1, 2, 3});
  CHECK(kept_tokens(logits, {.top_p = 0.91}).size() == 4);
  CHECK(kept_tokens(logits, {.top_k = 2, .top_p = 0.55}) == std::vector<TokenId>{3});  // 0.57 of the two
}

TEST_CASE("min-p keeps what is at least that share of the likeliest") {
  const std::vector<float> logits = proportional(4);
  CHECK(kept_tokens(logits, {.min_p = 0.26}) == std::vector<TokenId>{1, 2, 3});
  CHECK(kept_tokens(logits, {.min_p = 0.74}) == std::vector<TokenId>{2, 3});
  CHECK(kept_tokens(logits, {.min_p = 1.0}) == std::vector<TokenId>{3});
}

TEST_CASE("the filters together keep what their definitions say") {
  modicum::Random random(7);
  for (int round = 0; round < 400; ++round) {
    std::vector<float> logits(1 + random.next() % 600);
    const double scale = std::vector<double>{0.3, 3.0, 30.0, 300.0}[random.next() % 4];
    for (float& logit : logits) {
      logit = static_cast<float>(random.uniform() * scale);
    }
    const SamplingOptions options{.temperature = 0.25 + random.uniform(),
                                  .top_k = random.next() % 2 ? random.next() % 100 : 0,
                                  .top_p = random.next() % 2 ? random.uniform() : 1.0,
                                  .min_p = random.next() % 2 ? 0.2 * random.uniform() : 0.0};
    const auto kept = kept_tokens(logits, options);
    REQUIRE(std::ranges::is_sorted(kept));
    CAPTURE(round, logits.size(), options.temperature, options.top_k, options.top_p, options.min_p);
    REQUIRE(std::set<TokenId>(kept.begin(), kept.end()) == kept_by_definition(logits, options));
  }
}

TEST_CASE("warping in place divides what is kept by the temperature and makes the rest impossible") {
  std::vector<float> logits{1.0f, 5.0f, -kInfinity, 3.0f};
  modicum::warp(std::span<float>(logits), {.temperature = 2.0, .top_k = 2});
  CHECK(logits == std::vector<float>{-kInfinity, 2.5f, -kInfinity, 1.5f});
}

TEST_CASE("temperature 0 chooses the likeliest token, the lowest id among equals") {
  modicum::Sampler sampler({});
  std::vector<float> logits{0.0f, 2.0f, -kInfinity, 2.0f};
  CHECK(sampler.pick(logits) == 1);
}

TEST_CASE("tokens are drawn as often as their probability says, and only those that are kept") {
  constexpr int kDraws = 50000;
  modicum::Sampler sampler({.temperature = 1.0, .top_k = 3, .seed = 11});
  std::vector<int> count(4, 0);
  for (int i = 0; i < kDraws; ++i) {
    std::vector<float> logits = proportional(4);
    ++count[static_cast<std::size_t>(sampler.pick(logits))];
  }
  CHECK(count[0] == 0);
  double chi_squared = 0.0;
  for (int i = 1; i < 4; ++i) {
    const double expected = kDraws * (i + 1) / 9.0;
    chi_squared += (count[i] - expected) * (count[i] - expected) / expected;
  }
  CHECK(chi_squared < 13.8);  // two degrees of freedom, one in a thousand
}

TEST_CASE("one seed draws one sequence, another draws another") {
  const auto draw = [](std::uint64_t seed) {
    modicum::Sampler sampler({.temperature = 1.0, .seed = seed});
    std::vector<TokenId> tokens;
    for (int i = 0; i < 20; ++i) {
      std::vector<float> logits(100, 0.0f);
      tokens.push_back(sampler.pick(logits));
    }
    return tokens;
  };
  CHECK(draw(3) == draw(3));
  CHECK(draw(3) != draw(4));
}

TEST_CASE("a sampler refuses logits of which none is possible or some are not numbers") {
  for (const double temperature : {0.0, 1.0}) {
    modicum::Sampler sampler({.temperature = temperature});
    std::vector<float> impossible(3, -kInfinity);
    CHECK_THROWS_AS(sampler.pick(impossible), modicum::InvalidArgument);
    std::vector<float> infinite{1.0f, kInfinity};
    CHECK_THROWS_AS(sampler.pick(infinite), modicum::InvalidArgument);
    CHECK_THROWS_AS(sampler.pick({}), modicum::InvalidArgument);
  }
}

TEST_CASE("sampling options that make no sense are named") {
  const auto message = [](const SamplingOptions& options) {
    try {
      modicum::validate(options);
    } catch (const modicum::InvalidArgument& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  const double nan = std::numeric_limits<double>::quiet_NaN();
  CHECK(message({}).empty());
  CHECK(message({.temperature = -1.0}).find("temperature") != std::string::npos);
  CHECK(message({.temperature = nan}).find("temperature") != std::string::npos);
  CHECK(message({.top_p = 1.5}).find("top_p") != std::string::npos);
  CHECK(message({.top_p = nan}).find("top_p") != std::string::npos);
  CHECK(message({.min_p = -0.1}).find("min_p") != std::string::npos);
  CHECK(message({.repetition_penalty = 0.0}).find("repetition_penalty") != std::string::npos);
}

TEST_CASE("the repetition penalty counts a token once, in the prompt or in what was generated") {
  modicum::RepetitionPenalty penalty(2.0, 4);
  for (int use = 0; use < 2; ++use) {
    std::vector<float> scores{4.0f, -4.0f, 4.0f, -kInfinity};
    penalty.apply(scores, std::vector<TokenId>{0, 0, 1, 99}, std::vector<TokenId>{1, 0, 3});
    CHECK(scores == std::vector<float>{2.0f, -8.0f, 4.0f, -kInfinity});
  }
}
