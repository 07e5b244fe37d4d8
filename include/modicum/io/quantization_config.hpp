// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace modicum {

/// How compressed-tensors stores integers.
enum class IntegerFormat {
  packed,  ///< "pack-quantized": X.weight_packed, int32 words of 4 or 8 unsigned integers with an offset
  plain,   ///< "int-quantized": X.weight, int8
};

/// One of quantization_config's config_groups: symmetric integers, a scale for each group of a row's columns.
struct QuantizationScheme {
  std::vector<std::string> targets;
  IntegerFormat format = IntegerFormat::packed;
  std::size_t bits = 8;   ///< 4 or 8
  std::size_t group = 0;  ///< columns that share a scale, a multiple of 32; 0: all of a row ("channel")
  /// Activations are int8 with a scale for each token ("token"); else they are as `ops::matmul` likes them.
  bool token_activations = false;
};

/// config.json's quantization_config as compressed-tensors writes it.
struct QuantizationConfig {
  std::vector<QuantizationScheme> schemes;
  std::vector<std::string> ignore;

  /// The scheme of the linear layer called `module` ("model.layers.0.mlp.up_proj"), or null where it is to be
  /// stored in floats. As in compressed-tensors, an exact name goes before a pattern, that before "Linear".
  const QuantizationScheme* scheme_of(std::string_view module) const;
};

}  // namespace modicum
