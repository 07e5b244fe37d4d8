// SPDX-License-Identifier: Apache-2.0
#include "checkpoint_layout.hpp"

#include <algorithm>
#include <cstdio>
#include <utility>

#include "../base/json.hpp"
#include "checkpoint_state.hpp"
#include "safetensors_header.hpp"

namespace modicum {
namespace {

std::uint64_t size_of_spec(const TensorSpec& spec) {
  return bytes_of(spec.dtype, spec.shape).bytes;
}

}  // namespace

std::uint64_t shard_bytes_of(const Checkpoint& from) {
  std::uint64_t largest = 0;
  for (const SafetensorsFile& file : from.files()) {
    largest = std::max<std::uint64_t>(largest, file.file().bytes().size());
  }
  return from.files().size() > 1 ? largest : std::uint64_t{5} << 30;
}

std::vector<std::string> stored_order(const Checkpoint& from) {
  std::vector<std::string> order;
  for (const SafetensorsFile& file : from.files()) {
    std::vector<std::pair<std::uint64_t, std::string>> names;
    for (const auto& [name, info] : file.header().tensors) {
      const bool used = from.contains(name) && from.bytes(name).data() == file.bytes(name).data();
      if (used) names.emplace_back(info.begin, name);
    }
    std::sort(names.begin(), names.end());
    for (auto& [begin, name] : names) order.push_back(std::move(name));
  }
  return order;
}

std::string shard_name(std::size_t index, std::size_t count) {
  if (count == 1) return kWeightsFile;
  char name[64];
  std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", index + 1, count);
  return name;
}

std::vector<std::vector<TensorSpec>> split_into_shards(std::vector<TensorSpec> specs,
                                                       std::uint64_t shard_bytes) {
  std::vector<std::vector<TensorSpec>> shards(1);
  std::uint64_t filled = 0;
  for (TensorSpec& spec : specs) {
    const std::uint64_t size = size_of_spec(spec);
    if (!shards.back().empty() && (filled > shard_bytes || size > shard_bytes - filled)) {
      shards.emplace_back();
      filled = 0;
    }
    filled += size;
    shards.back().push_back(std::move(spec));
  }
  return shards;
}

std::string index_json(const std::vector<std::vector<TensorSpec>>& shards) {
  std::uint64_t total_size = 0;
  std::uint64_t total_parameters = 0;
  Json weight_map = Json::object();
  for (std::size_t i = 0; i < shards.size(); ++i) {
    for (const TensorSpec& spec : shards[i]) {
      const std::uint64_t size = size_of_spec(spec);
      total_size += size;
      total_parameters += size * 8 / safetensors_bits(spec.dtype);
      weight_map[spec.name] = shard_name(i, shards.size());
    }
  }
  const Json metadata = {{"total_parameters", total_parameters}, {"total_size", total_size}};
  return Json{{"metadata", metadata}, {"weight_map", std::move(weight_map)}}.dump(2) + "\n";
}

}  // namespace modicum
