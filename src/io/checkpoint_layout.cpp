// SPDX-License-Identifier: Apache-2.0
#include "checkpoint_layout.hpp"

#include <algorithm>
#include <utility>

namespace modicum {

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

}  // namespace modicum
