// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <modicum/io/model_config.hpp>
#include <modicum/model/weights.hpp>
#include <modicum/retrofit/kv_merge.hpp>

#include "student_layer.hpp"

namespace modicum::retrofit {

/// A layer's attention as the merge of its heads takes it, for a model of this configuration.
inline AttentionWeights attention_weights(const LayerWeights& layer, const ModelConfig& config) {
  const auto bias = [](const LinearWeights& weights) {
    linalg::Vector out(static_cast<Eigen::Index>(weights.bias.size()));
    std::copy(weights.bias.begin(), weights.bias.end(), out.begin());
    return out;
  };
  return {.shape = {config.num_attention_heads, config.num_key_value_heads, config.head_dim},
          .qk_norm = config.qk_norm,
          .q = widened(layer.q.weight),
          .k = widened(layer.k.weight),
          .v = widened(layer.v.weight),
          .o = widened(layer.o.weight),
          .q_bias = bias(layer.q),
          .k_bias = bias(layer.k),
          .v_bias = bias(layer.v)};
}

}  // namespace modicum::retrofit
