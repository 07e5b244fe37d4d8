// SPDX-License-Identifier: Apache-2.0
// Where things lie in a knowledge file, for its reader and its writer.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <modicum/cag/manifest.hpp>
#include <modicum/io/safetensors.hpp>

namespace modicum::cag {

inline constexpr std::size_t kChecksumBlock = std::size_t{1} << 20;
inline constexpr std::size_t kPage = 4096;

inline std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

inline std::size_t groups_of(std::size_t tokens) {
  return (tokens + ops::kKeyGroup - 1) / ops::kKeyGroup;
}

/// The tensors, in order; what comes before `checksums` is what they cover.
std::vector<TensorSpec> knowledge_layout(const Manifest& manifest, std::size_t prompt_bytes);

/// Of the header, its 8-byte length included, `checksums` and `prompt`.
std::string seal_of(std::span<const std::byte> header, std::span<const std::byte> sums,
                    std::span<const std::byte> prompt);

}  // namespace modicum::cag
