// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include <modicum/io/checkpoint.hpp>

namespace modicum {

inline constexpr const char* kWeightsFile = "model.safetensors";
inline constexpr const char* kIndexFile = "model.safetensors.index.json";

/// "[2, 3]".
std::string shape_text(const std::vector<std::uint64_t>& shape);

struct Checkpoint::State {
  std::filesystem::path directory;
  ModelConfig config;
  std::vector<SafetensorsFile> files;
  std::map<std::string, std::size_t, std::less<>> file_of;

  mutable std::mutex mutex;
  /// Copies of tensors that their file does not align; operator new aligns them for every element type.
  mutable std::map<std::string, std::vector<std::byte>, std::less<>> aligned;

  const SafetensorsFile& file(std::string_view tensor) const;
  std::optional<std::string> identity() const;
};

}  // namespace modicum
