// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

/// A safetensors file: the length of `header`, `header`, `data`.
inline std::string safetensors_bytes(std::string_view header, std::string_view data = {}) {
  std::string file;
  for (int shift = 0; shift < 64; shift += 8) {
    file += static_cast<char>(static_cast<std::uint64_t>(header.size()) >> shift & 0xffu);
  }
  return file.append(header).append(data);
}
