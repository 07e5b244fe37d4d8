// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>
#include <vector>

#include <modicum/decode/log_softmax.hpp>
#include <modicum/decode/random.hpp>

#include "support/catch.hpp"

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<float> random_logits(std::size_t n, double scale, modicum::Random& random) {
  std::vector<float> logits(n);
  for (float& logit : logits) {
    logit = static_cast<float>((random.uniform() - 0.5) * scale);
  }
  return logits;
}

std::vector<double> log_softmax_f64(const std::vector<float>& logits) {
  double max = -std::numeric_limits<double>::infinity();
  for (const float logit : logits) {
    max = std::max(max, static_cast<double>(logit));
  }
  double sum = 0.0;
  for (const float logit : logits) {
    sum += std::exp(static_cast<double>(logit) - max);
  }
  std::vector<double> out;
  for (const float logit : logits) {
    out.push_back(static_cast<double>(logit) - max - std::log(sum));
  }
  return out;
}

}  // namespace

TEST_CASE("the exponential is within two units in the last place, and 0 where it would be denormal") {
  for (float x = 0.0f; x > -87.6f; x -= 0.00371f) {
    const double exact = std::exp(static_cast<double>(x));
    REQUIRE(std::abs(static_cast<double>(modicum::exp_nonpositive(x)) - exact) <= 2.4e-7 * exact);
  }
  CHECK(modicum::exp_nonpositive(0.0f) == 1.0f);
  CHECK(modicum::exp_nonpositive(-88.0f) == 0.0f);
  CHECK(modicum::exp_nonpositive(-1e30f) == 0.0f);
  CHECK(modicum::exp_nonpositive(-kInfinity) == 0.0f);
  CHECK(std::isnan(modicum::exp_nonpositive(std::numeric_limits<float>::quiet_NaN())));
}

TEST_CASE("the largest value is found at every length and place, and NaN is passed over") {
  CHECK(modicum::largest({}) == -kInfinity);
  for (std::size_t n = 1; n < 70; ++n) {
    for (std::size_t at = 0; at < n; ++at) {
      std::vector<float> values(n, -3.0f);
      values[at] = -1.0f;
      REQUIRE(modicum::largest(values) == -1.0f);
    }
  }
  const std::vector<float> values{1.0f, std::numeric_limits<float>::quiet_NaN(), 2.0f};
  CHECK(modicum::largest(values) == 2.0f);
}

TEST_CASE("log-probabilities equal those computed in f64 at every length") {
  modicum::Random random(1);
  for (const std::size_t n : {1u, 2u, 15u, 16u, 17u, 255u, 256u, 257u, 511u, 1000u, 151936u}) {
    for (const double scale : {0.1, 10.0, 100.0}) {
      std::vector<float> logits = random_logits(n, scale, random);
      const std::vector<double> expected = log_softmax_f64(logits);
      modicum::log_softmax(logits);
      double worst = 0.0;
      for (std::size_t i = 0; i < n; ++i) {
        worst = std::max(worst, std::abs(static_cast<double>(logits[i]) - expected[i]));
      }
      CAPTURE(n, scale);
      CHECK(worst < 4e-6 * (1.0 + scale / 10.0));
    }
  }
}

TEST_CASE("an impossible token stays impossible and takes no probability") {
  std::vector<float> logits{1.0f, -kInfinity, 1.0f};
  modicum::log_softmax(logits);
  CHECK(logits[0] == Approx(std::log(0.5)));
  CHECK(logits[1] == -kInfinity);
}

TEST_CASE("logits that are not numbers are refused wherever they stand") {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::quiet_NaN(), kInfinity}) {
    for (const std::size_t at : {0u, 17u, 255u, 256u, 299u}) {
      std::vector<float> logits(300, 0.5f);
      logits[at] = bad;
      REQUIRE_THROWS_AS(modicum::log_softmax(logits), modicum::InvalidArgument);
    }
  }
  std::vector<float> impossible(5, -kInfinity);
  CHECK_THROWS_AS(modicum::log_softmax(impossible), modicum::InvalidArgument);
  CHECK_THROWS_AS(modicum::log_normaliser({}), modicum::InvalidArgument);
}
