// SPDX-License-Identifier: Apache-2.0
// A file is either refused with FormatError, or its tensors tile its data section. The input is tried as a
// whole file, and as the header of one with as many bytes of data as its first byte says.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>

#include <modicum/base/error.hpp>
#include <modicum/io/safetensors.hpp>

namespace {

void check(bool holds) {
  if (!holds) std::abort();
}

void parse(const std::string& file) {
  modicum::SafetensorsHeader header;
  try {
    header = modicum::parse_safetensors(std::as_bytes(std::span(file)), "fuzz");
  } catch (const modicum::FormatError&) {
    return;
  }
  check(header.data_begin <= file.size());
  std::uint64_t total = 0;
  for (const auto& [name, tensor] : header.tensors) {
    check(tensor.begin <= tensor.end && tensor.end <= file.size() - header.data_begin);
    std::uint64_t bits = modicum::safetensors_bits(tensor.dtype);
    for (const std::uint64_t extent : tensor.shape) bits *= extent;
    check(bits == tensor.bytes() * 8);
    total += tensor.bytes();
  }
  check(total == file.size() - header.data_begin);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string input(reinterpret_cast<const char*>(data), size);
  parse(input);
  if (input.empty()) return 0;
  std::string file;
  for (int shift = 0; shift < 64; shift += 8) {
    file += static_cast<char>(static_cast<std::uint64_t>(size - 1) >> shift & 0xffu);
  }
  parse(file.append(input, 1).append(data[0], 'd'));
  return 0;
}
