// SPDX-License-Identifier: Apache-2.0
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>

#include <modicum/base/error.hpp>
#include <modicum/tensor/dtype.hpp>

#include "support/catch.hpp"

using namespace modicum;

namespace {

/// What a small float's bits stand for, from the definition: sign · 2^(e − bias) · 1.m, or 0.m at the lowest
/// exponent.
double value_of(std::uint16_t bits, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = bits >> mantissa_bits & ((1 << exponent_bits) - 1);
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == (1 << exponent_bits) - 1) {
    return mantissa != 0 ? std::numeric_limits<double>::quiet_NaN()
                         : sign * std::numeric_limits<double>::infinity();
  }
  const double fraction = std::ldexp(mantissa, -mantissa_bits);
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias);
  return sign * std::ldexp(1.0 + fraction, exponent - bias);
}

/// The nearest of the representable neighbours `low` and its successor, ties to an even pattern.
template <class T>
std::uint16_t nearest(double x, double most) {
  const double magnitude = std::fabs(x);
  std::uint16_t low = 0;
  std::uint16_t high = static_cast<std::uint16_t>(std::bit_cast<std::uint16_t>(T{0x7fff}) & 0x7fff);
  // The patterns of positive numbers are in the order of their values; infinity stands for the next power of
  // two.
  const auto value = [&](std::uint16_t bits) {
    const auto v = static_cast<double>(to_f32(T{bits}));
    return std::isnan(v) ? std::numeric_limits<double>::infinity() : std::isinf(v) ? most : v;
  };
  while (high - low > 1) {
    const auto middle = static_cast<std::uint16_t>(low + (high - low) / 2);
    (value(middle) <= magnitude ? low : high) = middle;
  }
  const double below = magnitude - value(low);
  const double above = value(high) - magnitude;
  const bool up = above < below || (above == below && low % 2 == 1);
  return static_cast<std::uint16_t>((up ? high : low) | (std::signbit(x) ? 0x8000 : 0));
}

}  // namespace

TEST_CASE("every bf16 and f16 pattern widens to the number that its bits stand for") {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto pattern = static_cast<std::uint16_t>(bits);
    for (const auto& [got, want] : {std::pair<double, double>{to_f32(bf16{pattern}), value_of(pattern, 8, 7)},
                                    {to_f32(f16{pattern}), value_of(pattern, 5, 10)}}) {
      if (std::isnan(want)) {
        REQUIRE(std::isnan(got));
      } else {
        REQUIRE(got == want);
        REQUIRE(std::signbit(got) == std::signbit(want));
      }
    }
  }
}

TEST_CASE("every bf16 and f16 pattern survives a round trip, and NaN stays NaN") {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto pattern = static_cast<std::uint16_t>(bits);
    const float wide = to_f32(bf16{pattern});
    const float half = to_f32(f16{pattern});
    if (std::isnan(wide)) {
      REQUIRE(std::isnan(to_f32(to_bf16(wide))));
    } else {
      REQUIRE(to_bf16(wide).bits == pattern);
    }
    if (std::isnan(half)) {
      REQUIRE(std::isnan(to_f32(to_f16(half))));
    } else {
      REQUIRE(to_f16(half).bits == pattern);
    }
  }
}

TEST_CASE("narrowing rounds to the nearest, ties to even, and overflows to infinity") {
  const auto check = [](float x) {
    INFO(x);
    REQUIRE(to_bf16(x).bits == nearest<bf16>(x, 0x1p128));
    REQUIRE(to_f16(x).bits == nearest<f16>(x, 65536.0));
  };
  // Each pattern, the midpoint to its successor, and the floats just beside them.
  for (std::uint32_t bits = 0; bits < 0x7f80; bits += 7) {
    for (const std::uint32_t low : {0x0000u, 0x0001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      check(std::bit_cast<float>(bits << 16 | low));
      check(-std::bit_cast<float>(bits << 16 | low));
    }
  }
  for (std::uint32_t bits = 0; bits < 0x7c00; bits += 3) {
    const float low = to_f32(f16{static_cast<std::uint16_t>(bits)});
    const float high = to_f32(f16{static_cast<std::uint16_t>(bits + 1)});
    const float middle = std::isinf(high) ? 65520.0f : low + (high - low) / 2;
    for (const float x : {low, middle, std::nextafterf(middle, 0.0f), std::nextafterf(middle, INFINITY)})
      check(x);
  }
  std::mt19937 random(1);
  for (int i = 0; i < 20000; ++i) {
    const float x = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
    if (std::isfinite(x)) check(x);
  }
}

TEST_CASE("a dtype's name leads back to it, and an unknown name is refused with the known ones") {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16})
    REQUIRE(dtype_from_name(name_of(dtype)) == dtype);
  REQUIRE(size_of(DType::f32) == 4);
  REQUIRE(size_of(DType::bf16) == 2);
  REQUIRE(size_of(DType::f16) == 2);
  REQUIRE_THROWS_WITH(dtype_from_name("int9"),
                      Catch::Contains("f32, bf16 or f16") && Catch::Contains("int9"));
}
