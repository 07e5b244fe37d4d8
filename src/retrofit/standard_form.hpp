// SPDX-License-Identifier: Apache-2.0
// A planned model as a directory that other engines load: config.json, and which tensors it holds.
#pragma once

#include <string>
#include <vector>

#include <modicum/io/checkpoint.hpp>
#include <modicum/retrofit/plan.hpp>

namespace modicum::retrofit {

/// config.json of `from` after `plan`, every other field as it was. Windows take the form that the
/// architecture has: `layer_types` (qwen2, qwen3), one window for all layers (mistral). A llama becomes a
/// mistral where all layers get the window (the same tensors by the same names), else a qwen2 whose biases
/// are zero. Throws `Unsupported` where there is no standard form, with the reason.
std::string standard_config(const Checkpoint& from, const Plan& plan);

/// Biases that the standard form has and the source does not (a llama as qwen2): they are zero.
std::vector<TensorSpec> zero_biases(const Checkpoint& from, const Plan& plan);

/// What a tensor or module of the source is called in the output; empty where its layer is dropped.
std::string output_name(const std::string& name, const ModelConfig& config, const Plan& plan);

/// The layers of the source that stay, in order.
std::vector<std::size_t> kept_layers(const ModelConfig& config, const Plan& plan);

}  // namespace modicum::retrofit
