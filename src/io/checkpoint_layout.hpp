// SPDX-License-Identifier: Apache-2.0
// How a checkpoint lies in its files, for whoever writes one that is like it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <modicum/io/checkpoint.hpp>

namespace modicum {

/// A source of one file becomes one file (of up to 5 GB, as everywhere), shards become shards of their size.
std::uint64_t shard_bytes_of(const Checkpoint& from);

/// Names of all tensors in the order of their bytes, file after file.
std::vector<std::string> stored_order(const Checkpoint& from);

}  // namespace modicum
