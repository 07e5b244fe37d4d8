// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace modicum {

/// Element types that weights come in, and (the floats) keys and values. Integers stand for integer · scale,
/// with one scale for each group of a row's columns: `int8` is two's complement; `uint8` is offset by 128 and
/// `uint4` by 8, both as compressed-tensors packs them ("pack-quantized": element 0 in the lowest bits).
/// `int8_rows` is `int8` with one scale a row, for activations with one scale a token ("int-quantized").
enum class DType : std::uint8_t { f32, bf16, f16, int8, uint8, uint4, int8_rows };

constexpr bool is_float(DType dtype) {
  return dtype <= DType::f16;
}

/// Bits of an element.
constexpr std::size_t bits_of(DType dtype) {
  return dtype == DType::f32 ? 32 : is_float(dtype) ? 16 : dtype == DType::uint4 ? 4 : 8;
}

/// Bytes of an element of one byte or more.
std::size_t size_of(DType dtype);
/// "f32", "bf16", "f16", "int8", "uint8", "uint4", "int8_rows".
std::string_view name_of(DType dtype);
/// The inverse of `name_of` for floats. Throws `InvalidArgument` that lists the names.
DType dtype_from_name(std::string_view name);

/// The upper half of an IEEE float32.
struct bf16 {
  std::uint16_t bits = 0;
};

/// IEEE 754 binary16.
struct f16 {
  std::uint16_t bits = 0;
};

inline float to_f32(float x) {
  return x;
}

inline float to_f32(bf16 x) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(x.bits) << 16);
}

inline float to_f32(f16 x) {
  const std::uint32_t sign = static_cast<std::uint32_t>(x.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return std::bit_cast<float>(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  // Multiplying by 2^112 moves the exponent's bias from 15 to 127 and normalises subnormals exactly.
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(scaled) | sign);
}

/// Rounds to nearest, ties to even; NaN stays NaN.
inline bf16 to_bf16(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return bf16{static_cast<std::uint16_t>((bits >> 16) | 0x40u)};
  return bf16{static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

/// Rounds to nearest, ties to even; beyond the range to infinity; NaN stays NaN.
f16 to_f16(float x);

template <class T>
T from_f32(float x);
template <>
inline float from_f32<float>(float x) {
  return x;
}
template <>
inline bf16 from_f32<bf16>(float x) {
  return to_bf16(x);
}
template <>
inline f16 from_f32<f16>(float x) {
  return to_f16(x);
}

/// Calls `f` with a value of the floating-point type that `dtype` names: the one place where a run-time dtype
/// becomes a template argument.
template <class F>
decltype(auto) dispatch(DType dtype, F&& f) {
  switch (dtype) {
    case DType::bf16:
      return f(bf16{});
    case DType::f16:
      return f(f16{});
    default:
      break;
  }
  return f(float{});
}

}  // namespace modicum
