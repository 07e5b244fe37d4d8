// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <modicum/io/safetensors.hpp>

namespace modicum {

/// The bytes of a tensor, or why it has none.
struct SpecBytes {
  std::uint64_t bytes = 0;
  std::string error = {};
};

/// The size of such a tensor in bytes; `dtype` is a known one.
SpecBytes bytes_of(std::string_view dtype, std::span<const std::uint64_t> shape);

/// The JSON of a header, checked for form (keys, types, known dtypes, no key twice), not for offsets.
SafetensorsHeader parse_header_json(std::string_view text, std::string_view file);

/// All bytes of `specs`. Throws `InvalidArgument` where a file cannot hold them: a name twice or reserved, an
/// unknown dtype, a size beyond 2^64 or not in whole bytes.
std::uint64_t check_specs(std::span<const TensorSpec> specs);

/// What a file of these tensors begins with: length, JSON, and spaces up to a multiple of `alignment`.
std::string header_bytes(const std::vector<TensorSpec>& specs,
                         const std::map<std::string, std::string>& metadata, std::size_t alignment);

}  // namespace modicum
