// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <vector>

#include <modicum/base/hash.hpp>

#include "support/catch.hpp"

using namespace modicum;

namespace {

/// The buffer that xxHash's own sanity check hashes.
std::vector<std::byte> sanity_buffer(std::size_t size) {
  std::vector<std::byte> buffer(size);
  std::uint64_t generator = 2654435761u;
  for (std::byte& byte : buffer) {
    byte = static_cast<std::byte>(generator >> 56);
    generator *= 11400714785074694797u;
  }
  return buffer;
}

}  // namespace

TEST_CASE("hash64 is XXH3 of 64 bits, as xxHash publishes it") {
  CHECK(hash64(sanity_buffer(0)) == 0x2D06800538D394C2u);
  CHECK(hash64(sanity_buffer(1)) == 0xC44BDFF4074EECDBu);
  CHECK(hash64(sanity_buffer(6)) == 0x27B56A84CD2D7325u);
  CHECK(hash64(sanity_buffer(12)) == 0xA713DAF0DFBB77E7u);
  CHECK(hash64(sanity_buffer(24)) == 0xA3FE70BF9D3510EBu);
  CHECK(hash64(sanity_buffer(48)) == 0x397DA259ECBA1F11u);
  CHECK(hash64(sanity_buffer(80)) == 0xBCDEFBBB2C47C90Au);
  CHECK(hash64(sanity_buffer(195)) == 0xCD94217EE362EC3Au);
  CHECK(hash64(sanity_buffer(403)) == 0xCDEB804D65C6DEA4u);
  CHECK(hash64(sanity_buffer(2048)) == 0xDD59E2C3A5F038E0u);
}

TEST_CASE("hash128_hex is XXH3 of 128 bits, the higher half first") {
  CHECK(hash128_hex(sanity_buffer(0)) == "99aa06d3014798d86001c324468d497f");
  CHECK(hash128_hex(sanity_buffer(1)) == "a6cd5e9392000f6ac44bdff4074eecdb");
  CHECK(hash128_hex(sanity_buffer(6)) == "082afe0b8162d12a3e7039bdda43cfc6");
  CHECK(hash128_hex(sanity_buffer(2048)) == "f736557fd47073a5dd59e2c3a5f038e0");
}

TEST_CASE("text hashes as its bytes") {
  CHECK(hash64("abc") == 0x78AF5F94892F3950u);
  CHECK(hash128_hex("abc") == "06b05ab6733a618578af5f94892f3950");
  CHECK(hash64(std::string_view()) == hash64(std::span<const std::byte>()));
}
