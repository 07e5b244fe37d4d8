// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <vector>

#include <modicum/base/progress.hpp>
#include <modicum/io/checkpoint.hpp>
#include <modicum/retrofit/plan.hpp>

#include "journal.hpp"

namespace modicum::retrofit {

/// Writes the planned model into the empty directory `to`: tensors of `records` (by layer of the source) in
/// place of the source's, layers that were dropped left out and those after them renumbered, config.json, and
/// every other file as it is. Returns the bytes of all tensors.
std::uint64_t assemble(const Checkpoint& from, const std::filesystem::path& to, const Plan& plan,
                       const std::map<std::size_t, LayerRecord>& records, std::uint64_t shard_bytes,
                       const Progress& progress);

}  // namespace modicum::retrofit
