// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace modicum {

/// XXH3, 64 bits, seed 0, of `bytes`.
std::uint64_t hash64(std::span<const std::byte> bytes);
std::uint64_t hash64(std::string_view text);

/// XXH3, 128 bits, seed 0, as 32 lower-case hexadecimal digits, the higher half first (as `xxhsum -H2` prints
/// it).
std::string hash128_hex(std::span<const std::byte> bytes);
std::string hash128_hex(std::string_view text);

}  // namespace modicum
