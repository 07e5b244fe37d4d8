// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include <modicum/base/error.hpp>
#include <modicum/ops/attention.hpp>
#include <modicum/ops/quantize_kv.hpp>

#include "ops/random_matrix.hpp"
#include "support/catch.hpp"

using namespace modicum;
using ops::KvCodes;
using ops::KvCodesShape;

namespace {

template <class T>
const std::byte* bytes_of(const std::vector<T>& values) {
  return reinterpret_cast<const std::byte*>(values.data());
}

struct Wide {
  std::vector<float> k, v;
};

Wide widened(const KvCodesShape& shape, const KvCodes& codes) {
  Wide wide{std::vector<float>(shape.rows * shape.width()), std::vector<float>(shape.rows * shape.width())};
  ops::dequantize_kv(shape, codes, wide.k.data(), wide.v.data());
  return wide;
}

/// The scale of a key's channel and of a value's token and head.
float key_scale(const KvCodesShape& shape, const KvCodes& codes, std::size_t i) {
  const std::size_t row = i / shape.width();
  return to_f32(codes.k_scales[row / ops::kKeyGroup * 2 * shape.width() + i % shape.width()]);
}
float value_scale(const KvCodesShape& shape, const KvCodes& codes, std::size_t i) {
  return to_f32(codes.v_scales[i / shape.head_dim * 2]);
}

}  // namespace

TEST_CASE("each code is within half a scale of its value, and scales are those of the values' range") {
  const int bits = GENERATE(8, 4);
  for (const std::size_t rows : {1, 63, 64, 65, 200}) {
    const KvCodesShape shape{.rows = rows, .kv_heads = 3, .head_dim = 10, .bits = bits};
    auto k = random_values(rows * shape.width(), 1, 5.0f);
    const auto v = random_values(rows * shape.width(), 2, 0.01f);
    for (std::size_t i = 0; i < k.size(); i += shape.width()) k[i] += 80.0f;
    const KvCodes codes = quantize_kv(shape, bytes_of(k), bytes_of(v));
    const Wide wide = widened(shape, codes);
    for (std::size_t i = 0; i < k.size(); ++i) {
      INFO("row " << i / shape.width() << " channel " << i % shape.width());
      REQUIRE(std::fabs(wide.k[i] - k[i]) <= 0.5f * key_scale(shape, codes, i) + std::fabs(k[i]) * 1e-6f);
      REQUIRE(std::fabs(wide.v[i] - v[i]) <= 0.5f * value_scale(shape, codes, i) + std::fabs(v[i]) * 1e-6f);
      const auto steps = static_cast<float>((1 << bits) - 1);
      REQUIRE(key_scale(shape, codes, i) * steps <= 10.2f + 0.07f);
      REQUIRE(value_scale(shape, codes, i) * steps <= 0.0202f);
    }
  }
}

TEST_CASE("codes and scales lie where attention looks for them") {
  const KvCodesShape shape{.rows = 65, .kv_heads = 2, .head_dim = 4, .bits = 4};
  // Channel c of row r is worth c · 16 + r % 16, so a group's scale is 1 and its offset c · 16.
  std::vector<float> k, v;
  for (std::size_t r = 0; r < shape.rows; ++r) {
    for (std::size_t c = 0; c < shape.width(); ++c) k.push_back(static_cast<float>(c * 16 + r % 16));
    for (std::size_t c = 0; c < shape.width(); ++c) v.push_back(static_cast<float>(c % 4 * 5));
  }
  const KvCodes codes = quantize_kv(shape, bytes_of(k), bytes_of(v));
  REQUIRE(codes.k.size() == 65 * 4);
  REQUIRE(codes.k_scales.size() == 2 * 2 * 8);
  REQUIRE(codes.v_scales.size() == 65 * 2 * 2);
  for (std::size_t c = 0; c < 8; ++c) {
    REQUIRE(to_f32(codes.k_scales[c]) == 1.0f);
    REQUIRE(to_f32(codes.k_scales[8 + c]) == static_cast<float>(c * 16));
    REQUIRE(to_f32(codes.k_scales[16 + c]) == 0.0f);
    REQUIRE(to_f32(codes.k_scales[24 + c]) == static_cast<float>(c * 16));
  }
  for (std::size_t b = 0; b < 4; ++b) {
    REQUIRE(codes.k[3 * 4 + b] == std::byte{0x33});
    REQUIRE(codes.v[3 * 4 + b] == (b % 2 == 0 ? std::byte{0xa0} : std::byte{0xf5}));
  }
  REQUIRE(to_f32(codes.v_scales[0]) == 1.0f);
  REQUIRE(to_f32(codes.v_scales[1]) == 0.0f);
  REQUIRE(widened(shape, codes).k == k);
  REQUIRE(widened(shape, codes).v == v);
}

TEST_CASE("constant channels keep their value, whatever f16 makes of it") {
  const int bits = GENERATE(8, 4);
  for (const float constant : {0.0f, -0.0f, 1.0f, 0.1f, -123.456f, 3e-6f, -1e-9f, 65504.0f, -65504.0f}) {
    const KvCodesShape shape{.rows = 70, .kv_heads = 1, .head_dim = 8, .bits = bits};
    const std::vector<float> values(70 * 8, constant);
    INFO(constant);
    const Wide wide = widened(shape, quantize_kv(shape, bytes_of(values), bytes_of(values)));
    for (std::size_t i = 0; i < values.size(); ++i) {
      REQUIRE(std::fabs(wide.k[i] - constant) <= std::fabs(constant) * 4e-5f + 6e-8f);
      REQUIRE(wide.v[i] == wide.k[i]);
    }
  }
}

TEST_CASE("rows of every dtype are rounded alike, and again in the same way") {
  const KvCodesShape f32{.rows = 100, .kv_heads = 2, .head_dim = 16};
  auto k = random_values(f32.rows * f32.width(), 3);
  std::vector<bf16> k_bf16;
  std::vector<f16> k_f16;
  for (float& value : k) {
    // 7 bits: what both halves hold exactly.
    value = std::nearbyint(value * 64.0f) / 64.0f;
    k_bf16.push_back(to_bf16(value));
    k_f16.push_back(to_f16(value));
  }
  const KvCodes want = quantize_kv(f32, bytes_of(k), bytes_of(k));
  const auto same = [&](const KvCodes& got) {
    const auto equal = [](const std::vector<f16>& a, const std::vector<f16>& b) {
      return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(f16)) == 0;
    };
    return got.k == want.k && got.v == want.v && equal(got.k_scales, want.k_scales) &&
           equal(got.v_scales, want.v_scales);
  };
  KvCodesShape shape = f32;
  REQUIRE(same(quantize_kv(shape, bytes_of(k), bytes_of(k))));
  shape.dtype = DType::bf16;
  REQUIRE(same(quantize_kv(shape, bytes_of(k_bf16), bytes_of(k_bf16))));
  shape.dtype = DType::f16;
  REQUIRE(same(quantize_kv(shape, bytes_of(k_f16), bytes_of(k_f16))));
}

TEST_CASE("numbers that f16 cannot hold, and shapes without a layout, are refused by name") {
  const KvCodesShape shape{.rows = 3, .kv_heads = 1, .head_dim = 4};
  const std::vector<float> fine(12, 1.0f);
  for (const float value : {65505.0f, -1e6f, INFINITY, -INFINITY, NAN}) {
    auto broken = fine;
    broken[7] = value;
    REQUIRE_THROWS_AS(quantize_kv(shape, bytes_of(broken), bytes_of(fine)), Unsupported);
    REQUIRE_THROWS_AS(quantize_kv(shape, bytes_of(fine), bytes_of(broken)), Unsupported);
  }
  auto wrong = shape;
  wrong.bits = 5;
  REQUIRE_THROWS_AS(quantize_kv(wrong, bytes_of(fine), bytes_of(fine)), InvalidArgument);
  wrong = {.rows = 4, .kv_heads = 1, .head_dim = 3, .bits = 4};
  REQUIRE_THROWS_AS(quantize_kv(wrong, bytes_of(fine), bytes_of(fine)), InvalidArgument);
  wrong = {.rows = 3, .kv_heads = 1, .head_dim = 4, .dtype = DType::int8};
  REQUIRE_THROWS_AS(quantize_kv(wrong, bytes_of(fine), bytes_of(fine)), InvalidArgument);
  wrong = {.rows = 0, .kv_heads = 1, .head_dim = 4};
  REQUIRE(quantize_kv(wrong, nullptr, nullptr).k_scales.empty());
}
