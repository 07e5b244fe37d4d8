// SPDX-License-Identifier: Apache-2.0
// How a checkpoint lies in its files, for whoever writes one that is like it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <modicum/io/checkpoint.hpp>

namespace modicum {

/// A source of one file becomes one file (of up to 5 GB, as everywhere), shards become shards of their size.
std::uint64_t shard_bytes_of(const Checkpoint& from);

/// Names of all tensors in the order of their bytes, file after file.
std::vector<std::string> stored_order(const Checkpoint& from);

/// Data of a weights file begins at a multiple of it: a cache line, and the widest vector register.
inline constexpr std::size_t kTensorAlignment = 64;

/// In order, a new shard where the next tensor would pass the limit: transformers' rule.
std::vector<std::vector<TensorSpec>> split_into_shards(std::vector<TensorSpec> specs,
                                                       std::uint64_t shard_bytes);
std::string shard_name(std::size_t index, std::size_t count);
/// The text of model.safetensors.index.json.
std::string index_json(const std::vector<std::vector<TensorSpec>>& shards);

}  // namespace modicum
