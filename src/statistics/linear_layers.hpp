// SPDX-License-Identifier: Apache-2.0
// The linear layers of a decoder layer, by name.
#pragma once

#include <string_view>
#include <utility>
#include <vector>

#include <modicum/io/model_config.hpp>
#include <modicum/linalg/dense.hpp>
#include <modicum/model/weights.hpp>

namespace modicum {

/// The linear layers of a decoder layer.
enum class Linear { q, k, v, o, gate, up, down };
inline constexpr Linear kLinears[] = {Linear::q,    Linear::k,  Linear::v,   Linear::o,
                                      Linear::gate, Linear::up, Linear::down};

/// Elements [rows · cols], row-major.
std::vector<float> floats_of(const WeightView& weight);

/// Rows and columns of a linear layer in a model of this configuration.
std::pair<std::size_t, std::size_t> shape_of(const ModelConfig& config, Linear linear);

/// "self_attn.q_proj", …, "mlp.down_proj".
std::string_view module_of(Linear linear);
LinearWeights& weights_of(LayerWeights& layer, Linear linear);
const LinearWeights& weights_of(const LayerWeights& layer, Linear linear);

/// The matrix in f64, [rows, cols].
linalg::Matrix widened(const WeightView& weight);

}  // namespace modicum
