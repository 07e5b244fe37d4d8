// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include <modicum/io/checkpoint.hpp>
#include <modicum/tensor/matrix.hpp>

namespace modicum {

/// y = W x + b: the matrix in place, the bias (or none) as f32. With an `inner` matrix the layer is of low
/// rank, y = W (inner x) + b.
struct LinearWeights {
  WeightView weight;
  std::vector<float> bias;
  WeightView inner = {};  ///< [rank, inputs], or empty

  const float* bias_or_null() const { return bias.empty() ? nullptr : bias.data(); }
};

struct LayerWeights {
  std::vector<float> input_norm;
  std::vector<float> post_attention_norm;
  std::vector<float> q_norm;  ///< [head_dim], empty without QK-norm
  std::vector<float> k_norm;
  LinearWeights q, k, v, o;
  LinearWeights gate, up, down;
};

/// What the matrix products of one token read and do.
struct TokenCost {
  std::uint64_t bytes = 0;
  std::uint64_t multiply_adds = 0;
};

/// A checkpoint's tensors by their role. Matrices are views into the mapped files, or into memory of their
/// own where another dtype was asked for; vectors are copied to f32.
struct ModelWeights {
  DType dtype = DType::f32;  ///< of every matrix that is not integers, and of keys and values
  WeightView embedding;      ///< [vocab_size, hidden_size]
  WeightView head;           ///< [vocab_size, hidden_size]; the embedding where they are tied
  std::vector<float> norm;
  std::vector<LayerWeights> layers;
  std::shared_ptr<const void> owner;  ///< mapped files and converted copies

  /// `dtype` empty: the one in which the first layer's matrices are stored, or the embedding where those are
  /// integers, which stay as they are. Throws `FormatError` for a tensor that is missing, has another shape,
  /// does not agree with quantization_config, or that a model of this configuration does not have (leaving it
  /// out would answer from the wrong model); `Unsupported` as `Checkpoint::linear_weight`, and for layers
  /// that share an input (q, k and v; gate and up) in different formats.
  static ModelWeights load(const Checkpoint& checkpoint, std::optional<DType> dtype = std::nullopt);

  /// Of one token, the head included; of the embedding it reads a row, which is left out.
  TokenCost token_cost() const;
};

}  // namespace modicum
