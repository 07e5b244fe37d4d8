// SPDX-License-Identifier: Apache-2.0
#include "packed_linear.hpp"

#include <algorithm>
#include <utility>

#include <modicum/base/error.hpp>
#include <modicum/tensor/matrix.hpp>

#include "../base/json.hpp"

namespace modicum::retrofit {
namespace {

/// The release whose layout of config.json and tensors is written.
constexpr const char* kCompressedTensors = "0.20.0";
constexpr const char* kPacked = "pack-quantized";
constexpr const char* kPlain = "int-quantized";
constexpr const char* kMixed = "mixed-precision";

const char* format_of(std::size_t group) {
  return group == 0 ? kPlain : kPacked;
}

Json scheme_json(std::vector<std::string> targets, std::size_t bits, std::size_t group) {
  Json weights = {{"num_bits", bits}, {"type", "int"}, {"symmetric", true}, {"dynamic", false}};
  Json activations = nullptr;
  if (group == 0) {
    weights["strategy"] = "channel";
    activations = {
        {"num_bits", 8}, {"type", "int"}, {"symmetric", true}, {"strategy", "token"}, {"dynamic", true}};
  } else {
    weights.update({{"strategy", "group"}, {"group_size", group}});
  }
  return {{"targets", std::move(targets)},
          {"weights", std::move(weights)},
          {"input_activations", std::move(activations)},
          {"output_activations", nullptr},
          {"format", format_of(group)}};
}

/// The modules of one bits and group.
struct Scheme {
  std::size_t bits, group;
  std::vector<std::string> modules;
};

/// In order of first appearance, but for the largest, which comes last: compressed-tensors takes the first
/// target that matches, and warns of names that "Linear" was before.
std::vector<Scheme> schemes_of(std::span<const QuantizedModule> modules) {
  std::vector<Scheme> schemes;
  for (const QuantizedModule& module : modules) {
    auto at = std::find_if(schemes.begin(), schemes.end(),
                           [&](const Scheme& s) { return s.bits == module.bits && s.group == module.group; });
    if (at == schemes.end()) at = schemes.insert(at, {module.bits, module.group, {}});
    at->modules.push_back(module.name);
  }
  const auto largest = std::max_element(schemes.begin(), schemes.end(), [](const Scheme& a, const Scheme& b) {
    return a.modules.size() < b.modules.size();
  });
  if (largest != schemes.end()) std::rotate(largest, largest + 1, schemes.end());
  return schemes;
}

}  // namespace

void check_layout(std::string_view op, const std::string& what, std::size_t bits, std::size_t group) {
  if (bits != 4 && bits != 8) {
    fail({.op = op, .what = "bits of " + what, .expected = "4 or 8", .got = std::to_string(bits)});
  }
  const bool fits = group == 0 ? bits == 8 : group % kQuantGroup == 0;
  if (fits) return;
  fail({.op = op,
        .what = "group of " + what,
        .expected = "a multiple of " + std::to_string(kQuantGroup) + ", or whole rows with 8 bits",
        .got = std::to_string(group)});
}

std::vector<TensorSpec> packed_specs(const QuantizedModule& module, std::size_t rows, std::size_t cols,
                                     const std::string& scale_dtype) {
  if (module.group == 0) {
    return {{module.name + ".weight", "I8", {rows, cols}},
            {module.name + ".weight_scale", scale_dtype, {rows, 1}}};
  }
  return {{module.name + ".weight_packed", "I32", {rows, cols * module.bits / 32}},
          {module.name + ".weight_scale", scale_dtype, {rows, cols / module.group}},
          {module.name + ".weight_shape", "I64", {2}}};
}

void pack_integers(std::span<const std::int8_t> integers, std::size_t bits, std::size_t group,
                   std::byte* out) {
  if (group == 0) {
    std::copy_n(std::as_bytes(integers).begin(), integers.size(), out);
    return;
  }
  if (bits == 8) {
    for (std::size_t i = 0; i < integers.size(); ++i) out[i] = static_cast<std::byte>(integers[i] + 128);
    return;
  }
  for (std::size_t i = 0; i < integers.size(); i += 2) {
    out[i / 2] = static_cast<std::byte>((integers[i] + 8) | (integers[i + 1] + 8) << 4);
  }
}

std::vector<std::vector<std::byte>> pack_linear(const RoundedMatrix& matrix, DType scale_dtype) {
  std::vector<std::vector<std::byte>> tensors(2);
  tensors[0].resize(matrix.integers.size() * (matrix.group == 0 ? 8 : matrix.bits) / 8);
  pack_integers(matrix.integers, matrix.bits, matrix.group, tensors[0].data());
  dispatch(scale_dtype, [&](auto t) {
    using T = decltype(t);
    tensors[1].resize(matrix.scales.size() * sizeof(T));
    auto* const scales = reinterpret_cast<T*>(tensors[1].data());
    std::transform(matrix.scales.begin(), matrix.scales.end(), scales,
                   [](float s) { return from_f32<T>(s); });
  });
  if (matrix.group == 0) return tensors;
  const std::uint64_t shape[2] = {matrix.rows, matrix.cols};
  const auto bytes = std::as_bytes(std::span(shape));
  tensors.emplace_back(bytes.begin(), bytes.end());
  return tensors;
}

std::string quantization_json(std::span<const QuantizedModule> modules, std::vector<std::string> ignore) {
  Json groups = Json::object();
  std::string format = kPacked;
  std::vector<Scheme> schemes = schemes_of(modules);
  for (Scheme& scheme : schemes) {
    const std::string own = format_of(scheme.group);
    format = groups.empty() || format == own ? own : kMixed;
    if (&scheme == &schemes.back()) scheme.modules = {"Linear"};
    groups["group_" + std::to_string(groups.size())] =
        scheme_json(std::move(scheme.modules), scheme.bits, scheme.group);
  }
  const Json config = {{"quant_method", "compressed-tensors"},
                       {"version", kCompressedTensors},
                       {"format", format},
                       {"quantization_status", "compressed"},
                       {"config_groups", std::move(groups)},
                       {"ignore", std::move(ignore)},
                       {"kv_cache_scheme", nullptr},
                       {"global_compression_ratio", nullptr}};
  return config.dump();
}

}  // namespace modicum::retrofit
