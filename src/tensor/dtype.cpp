// SPDX-License-Identifier: Apache-2.0
#include <string>

#include <modicum/base/error.hpp>
#include <modicum/tensor/dtype.hpp>

namespace modicum {

std::size_t size_of(DType dtype) {
  return bits_of(dtype) / 8;
}

std::string_view name_of(DType dtype) {
  static constexpr std::string_view names[] = {"f32", "bf16", "f16", "int8", "uint8", "uint4", "int8_rows"};
  return names[static_cast<int>(dtype)];
}

DType dtype_from_name(std::string_view name) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    if (name == name_of(dtype)) return dtype;
  }
  fail({.op = "dtype", .what = "name", .expected = "f32, bf16 or f16", .got = "'" + std::string(name) + "'"});
}

f16 to_f16(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return f16{static_cast<std::uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return f16{static_cast<std::uint16_t>(sign | 0x7c00u)};
  if (magnitude < 0x38800000u) {
    // Adding 0.5 puts the lowest bit of a subnormal f16 (2^-24) at the lowest bit of the sum, rounded to
    // even.
    const float sum = std::bit_cast<float>(magnitude) + 0.5f;
    return f16{static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(sum) - 0x3f000000u))};
  }
  const std::uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return f16{static_cast<std::uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
}

}  // namespace modicum
