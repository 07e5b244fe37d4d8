// SPDX-License-Identifier: Apache-2.0
// Linear layers, stored as floats or as compressed-tensors' integers.
#include <cstdint>
#include <cstring>
#include <utility>

#include <modicum/base/error.hpp>
#include <modicum/io/checkpoint.hpp>

#include "../base/quote.hpp"
#include "checkpoint_state.hpp"

namespace modicum {
namespace {

constexpr std::string_view kOp = "checkpoint.linear_weight";

std::string shape_of(std::size_t rows, std::size_t cols) {
  return "[" + std::to_string(rows) + ", " + std::to_string(cols) + "]";
}

/// Bytes of a tensor that must be `dtype` of [rows, cols].
std::span<const std::byte> integers(const Checkpoint& checkpoint, const std::string& tensor,
                                    std::string_view dtype, std::size_t rows, std::size_t cols) {
  const TensorInfo& info = checkpoint.info(tensor);
  if (info.dtype != dtype || info.shape != std::vector<std::uint64_t>{rows, cols}) {
    fail<FormatError>({.op = kOp,
                       .what = "tensor " + quote(tensor) + " in " + quote(checkpoint.directory().string()),
                       .expected = std::string(dtype) + " of " + shape_of(rows, cols),
                       .got = info.dtype + " of " + shape_text(info.shape)});
  }
  return checkpoint.bytes(tensor);
}

template <class T>
bool holds(std::span<const std::byte> bytes, std::size_t rows, std::size_t cols) {
  const T expected[2] = {static_cast<T>(rows), static_cast<T>(cols)};
  return bytes.size() == sizeof expected && std::memcmp(bytes.data(), expected, sizeof expected) == 0;
}

/// The shape that packing hides is also stored; where it is, it must be the one that config.json implies.
void check_shape(const Checkpoint& checkpoint, const std::string& tensor, std::size_t rows,
                 std::size_t cols) {
  if (!checkpoint.contains(tensor)) return;
  const std::string& dtype = checkpoint.info(tensor).dtype;
  const std::span<const std::byte> bytes = checkpoint.bytes(tensor);
  if (dtype == "I64" ? holds<std::int64_t>(bytes, rows, cols)
                     : dtype == "I32" && holds<std::int32_t>(bytes, rows, cols)) {
    return;
  }
  fail<FormatError>({.op = kOp,
                     .what = "tensor " + quote(tensor) + " in " + quote(checkpoint.directory().string()),
                     .expected = "I64 that hold " + shape_of(rows, cols),
                     .got = "something else"});
}

void refuse_variants(const Checkpoint& checkpoint, const std::string& module) {
  for (const char* suffix : {".weight_zero_point", ".weight_g_idx", ".weight_global_scale"}) {
    if (!checkpoint.contains(module + suffix)) continue;
    fail<Unsupported>({.op = kOp,
                       .what = "tensor " + quote(module + suffix),
                       .expected = "symmetric integers whose columns are in their own order",
                       .got = "a tensor that says otherwise"});
  }
}

[[noreturn]] void fail_disagreement(const std::string& module, std::string expected, std::string got) {
  fail<FormatError>({.op = kOp,
                     .what = "layer " + quote(module),
                     .expected = std::move(expected) + ", as quantization_config says",
                     .got = std::move(got),
                     .todo = "check that config.json and the weights belong together"});
}

}  // namespace

WeightView Checkpoint::linear_weight(std::string_view name, std::size_t rows, std::size_t cols) const {
  const std::string module(name);
  const bool quantised = contains(module + ".weight_scale") || contains(module + ".weight_packed");
  const QuantizationScheme* scheme =
      config().quantization ? config().quantization->scheme_of(module) : nullptr;
  if (!quantised && scheme == nullptr) return weight(module + ".weight", rows, cols);
  if (!quantised) fail_disagreement(module, "integers with scales", "none");
  if (scheme == nullptr) fail_disagreement(module, "floats", "integers");
  refuse_variants(*this, module);

  WeightView view{.rows = rows, .cols = cols, .group = scheme->group == 0 ? cols : scheme->group};
  if (cols % view.group != 0 || cols % kQuantGroup != 0) {
    fail<Unsupported>({.op = kOp,
                       .what = "layer " + quote(module) + " with " + std::to_string(cols) + " inputs",
                       .expected = "a multiple of its group of " + std::to_string(view.group) + " and of 32",
                       .got = "one that is not",
                       .todo = "leave this layer in floats (ignore)"});
  }
  if (scheme->format == IntegerFormat::packed) {
    view.dtype = scheme->bits == 4 ? DType::uint4 : DType::uint8;
    view.data = integers(*this, module + ".weight_packed", "I32", rows, cols * scheme->bits / 32).data();
    check_shape(*this, module + ".weight_shape", rows, cols);
  } else {
    view.dtype = scheme->group == 0 && scheme->token_activations ? DType::int8_rows : DType::int8;
    view.data = integers(*this, module + ".weight", "I8", rows, cols).data();
  }
  const WeightView scales = weight(module + ".weight_scale", rows, cols / view.group);
  view.scales = scales.data;
  view.scale_dtype = scales.dtype;
  return view;
}

std::uint64_t Checkpoint::parameters() const {
  std::uint64_t total = 0;
  for (const std::string& name : names()) {
    const std::string_view view = name;
    if (config().quantization && (view.ends_with(".weight_scale") || view.ends_with(".weight_shape")))
      continue;
    const TensorInfo& tensor = info(name);
    std::size_t bits = safetensors_bits(tensor.dtype);
    if (config().quantization && view.ends_with(".weight_packed")) {
      const auto* scheme = config().quantization->scheme_of(view.substr(0, view.rfind('.')));
      if (scheme != nullptr) bits = scheme->bits;
    }
    total += tensor.bytes() * 8 / bits;
  }
  return total;
}

}  // namespace modicum
