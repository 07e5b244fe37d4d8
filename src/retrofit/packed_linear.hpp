// SPDX-License-Identifier: Apache-2.0
// Linear layers as integers in a checkpoint: the tensors and the part of config.json that compressed-tensors,
// and with it transformers and vLLM, reads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <modicum/io/checkpoint.hpp>
#include <modicum/retrofit/round_matrix.hpp>

namespace modicum::retrofit {

/// A linear layer whose weights are integers in the file. Group 0, a scale a row, is "int-quantized" and for
/// activations that are rounded to int8 with a scale a token (W8A8); everything else is "pack-quantized".
struct QuantizedModule {
  std::string name;  ///< "model.layers.0.mlp.up_proj"
  std::size_t bits = 8;
  std::size_t group = 32;
};

/// Throws `InvalidArgument` where files have no such integers: bits other than 4 and 8, a group that is no
/// multiple of 32, or whole rows of 4 bits. `what` names them in the error.
void check_layout(std::string_view op, const std::string& what, std::size_t bits, std::size_t group);

/// The tensors of one module: integers, scales of the safetensors dtype `scale_dtype`, and, packed, their
/// shape.
std::vector<TensorSpec> packed_specs(const QuantizedModule& module, std::size_t rows, std::size_t cols,
                                     const std::string& scale_dtype);

/// Integers as their tensor holds them; whole rows of them take integers.size() · bits / 8 bytes.
void pack_integers(std::span<const std::int8_t> integers, std::size_t bits, std::size_t group,
                   std::byte* out);

/// The bytes of `packed_specs`'s tensors, in its order. Scales are rounded to `scale_dtype`, which is to be
/// the one that they were searched in.
std::vector<std::vector<std::byte>> pack_linear(const RoundedMatrix& matrix, DType scale_dtype);

/// config.json's quantization_config, as JSON, for these modules, each with its own bits and group. The
/// scheme that most of them have is that of "Linear"; the others go by the names of their modules. `ignore`
/// are the linear layers that stay in floats.
std::string quantization_json(std::span<const QuantizedModule> modules, std::vector<std::string> ignore);

}  // namespace modicum::retrofit
