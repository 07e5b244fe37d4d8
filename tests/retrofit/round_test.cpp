// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include <modicum/retrofit/round.hpp>

#include "support/catch.hpp"

using namespace modicum;

namespace {

constexpr DType kFloats[] = {DType::f32, DType::bf16, DType::f16};

struct Rounded {
  float scale = 0;
  std::vector<std::int8_t> integers;
};

Rounded round(const std::vector<float>& weights, std::size_t bits, DType dtype) {
  Rounded result{.integers = std::vector<std::int8_t>(weights.size())};
  result.scale = retrofit::round_group(weights, bits, dtype, result.integers);
  return result;
}

double squared_error(const std::vector<float>& weights, const Rounded& rounded) {
  double sum = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const double error = weights[i] - static_cast<double>(rounded.scale) * rounded.integers[i];
    sum += error * error;
  }
  return sum;
}

float stored(float scale, DType dtype) {
  return dispatch(dtype, [&](auto t) { return to_f32(from_f32<decltype(t)>(scale)); });
}

/// What a fixed scale gives.
Rounded with_scale(const std::vector<float>& weights, float scale, std::size_t bits) {
  const float half = std::ldexp(1.0f, static_cast<int>(bits) - 1);
  Rounded result{.scale = scale};
  for (const float w : weights) {
    result.integers.push_back(
        static_cast<std::int8_t>(std::min(std::max(std::nearbyint(w / scale), -half), half - 1)));
  }
  return result;
}

std::vector<float> gaussian(std::size_t count, std::mt19937& random, float deviation = 0.02f) {
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

float magnitude(const std::vector<float>& weights) {
  float most = 0;
  for (const float w : weights) most = std::max(most, std::abs(w));
  return most;
}

}  // namespace

TEST_CASE("integers are the nearest to weight / scale, and the scale is one that its dtype holds") {
  std::mt19937 random(1);
  for (const DType dtype : kFloats) {
    for (const std::size_t bits : {2u, 4u, 5u, 8u}) {
      for (const std::size_t count : {32u, 64u, 96u, 128u}) {
        const std::vector<float> weights = gaussian(count, random);
        const Rounded rounded = round(weights, bits, dtype);
        REQUIRE(rounded.scale == stored(rounded.scale, dtype));
        REQUIRE(rounded.integers == with_scale(weights, rounded.scale, bits).integers);
      }
    }
  }
}

TEST_CASE("the error is below that of the scales that compressed-tensors and llama.cpp take") {
  std::mt19937 random(2);
  for (const std::size_t bits : {4u, 8u}) {
    double ours = 0, largest_over_half = 0, largest_to_lowest = 0;
    for (int i = 0; i < 1000; ++i) {
      const std::vector<float> weights = gaussian(32, random);
      const float half = std::ldexp(1.0f, static_cast<int>(bits) - 1);
      const float most = magnitude(weights);
      const bool positive = std::find(weights.begin(), weights.end(), most) != weights.end();
      ours += squared_error(weights, round(weights, bits, DType::bf16));
      largest_over_half +=
          squared_error(weights, with_scale(weights, stored(most / (half - 0.5f), DType::bf16), bits));
      largest_to_lowest += squared_error(
          weights, with_scale(weights, stored((positive ? -most : most) / half, DType::bf16), bits));
    }
    CHECK(ours < 0.85 * largest_over_half);
    CHECK(ours < 0.92 * largest_to_lowest);
  }
}

TEST_CASE("zeros, one weight, equal weights and the widest range are kept within a step") {
  const float tiny = std::numeric_limits<float>::denorm_min();
  for (const DType dtype : kFloats) {
    for (const std::size_t bits : {4u, 8u}) {
      const Rounded zeros = round(std::vector<float>(32, 0.0f), bits, dtype);
      CHECK(zeros.scale > 0);
      CHECK(zeros.integers == std::vector<std::int8_t>(32, 0));
      for (const float value : {1.0f, -1.0f, 1e-3f, 6e4f, -6e4f}) {
        std::vector<float> one(32, 0.0f);
        one[7] = value;
        for (const std::vector<float>& weights : {one, std::vector<float>(32, value)}) {
          const Rounded rounded = round(weights, bits, dtype);
          CHECK(squared_error(weights, rounded) <= 32 * std::pow(value / 64.0, 2));
        }
      }
      const Rounded lost = round(std::vector<float>(32, tiny), bits, dtype);
      CHECK(std::isfinite(lost.scale));
      CHECK(lost.integers == std::vector<std::int8_t>(32, 0));
    }
  }
  for (const DType dtype : {DType::f32, DType::bf16}) {
    std::vector<float> huge(32, 3e38f);
    huge[3] = -3e38f;
    const Rounded rounded = round(huge, 4, dtype);
    for (std::size_t i = 0; i < 32; ++i) {
      CHECK(std::abs(static_cast<double>(rounded.scale) * rounded.integers[i] / huge[i] - 1) < 0.13);
    }
  }
}
