// SPDX-License-Identifier: Apache-2.0
#include <modicum/base/hash.hpp>

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace modicum {

std::uint64_t hash64(std::span<const std::byte> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

std::uint64_t hash64(std::string_view text) {
  return hash64(std::as_bytes(std::span(text)));
}

std::string hash128_hex(std::span<const std::byte> bytes) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  const XXH128_hash_t hash = XXH3_128bits(bytes.data(), bytes.size());
  std::string text;
  text.reserve(32);
  for (const std::uint64_t half : {hash.high64, hash.low64}) {
    for (int shift = 60; shift >= 0; shift -= 4) text += kDigits[(half >> shift) & 15u];
  }
  return text;
}

std::string hash128_hex(std::string_view text) {
  return hash128_hex(std::as_bytes(std::span(text)));
}

}  // namespace modicum
