// SPDX-License-Identifier: Apache-2.0
// What is written for each tensor of a checkpoint that is being quantised, and in which order.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include <modicum/io/checkpoint.hpp>
#include <modicum/retrofit/quantize.hpp>

namespace modicum::retrofit {

/// One tensor of the source and what it becomes.
struct QuantizeStep {
  std::string source;  ///< a tensor of the source
  std::string module;  ///< the linear layer that integers are written for
  std::string kind;
  std::size_t bits = 0;  ///< 0: copied
  std::size_t rows = 0;  ///< where it becomes integers
  std::size_t cols = 0;
};

struct QuantizePlan {
  std::vector<QuantizeStep> steps;
  std::vector<std::string> kept;  ///< linear layers that stay in floats, the head aside
};

/// Steps in the order of the source's bytes. Throws as `quantize` does for options.
QuantizePlan make_plan(const Checkpoint& from, const QuantizeOptions& options);

/// The tensors that a step writes: integers, their shape and scales, or the source as it is.
std::vector<TensorSpec> outputs_of(const QuantizeStep& step, const Checkpoint& from, std::size_t group);

/// config.json of what `plan` writes.
std::string quantized_config(const Checkpoint& from, const QuantizePlan& plan,
                             const QuantizeOptions& options);

}  // namespace modicum::retrofit
