// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace modicum {

/// config.json's modicum.low_rank: linear layers that are stored as two factors, W = U V, in tensors
/// `module`.weight_u [outputs, rank] and `module`.weight_v [rank, inputs]. No other program's format.
struct LowRankConfig {
  struct Target {
    std::string module;  ///< a name ("model.layers.0.mlp.up_proj"), or re: and a pattern
    std::size_t rank = 0;
  };
  std::vector<Target> modules;  ///< sorted

  /// The rank of the linear layer called `module`, 0 where it is one matrix. An exact name goes before a
  /// pattern, an earlier pattern before a later one.
  std::size_t rank_of(std::string_view module) const;
};

}  // namespace modicum
