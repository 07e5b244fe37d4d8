// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include <modicum/base/error.hpp>
#include <modicum/io/safetensors.hpp>

#include "../base/quote.hpp"
#include "safetensors_header.hpp"

namespace modicum {
namespace {

constexpr std::string_view kOp = "safetensors.open";
constexpr std::uint64_t kMaxHeader = 100'000'000;  // the reference's MAX_HEADER_SIZE

struct NamedBits {
  std::string_view name;
  std::size_t bits;
};

constexpr std::array kDtypes = std::to_array<NamedBits>({
    {"BOOL", 8},        {"F4", 4},          {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},   {"I8", 8},
    {"F8_E5M2", 8},     {"F8_E4M3", 8},     {"F8_E8M0", 8}, {"I16", 16},    {"U16", 16}, {"F16", 16},
    {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"BF16", 16},   {"I32", 32},    {"U32", 32}, {"F32", 32},
    {"C64", 64},        {"F64", 64},        {"I64", 64},    {"U64", 64},
});

bool multiply(std::uint64_t a, std::uint64_t b, std::uint64_t& product) {
  return !__builtin_mul_overflow(a, b, &product);
}

[[noreturn]] void fail_format(std::string_view file, std::string what, std::string expected = {},
                              std::string got = {}) {
  fail<FormatError>({.op = kOp,
                     .what = std::move(what) + " in " + quote(file),
                     .expected = std::move(expected),
                     .got = std::move(got)});
}

/// The checks that need no neighbour: offsets in order, and as many bytes as shape and dtype say.
void check_extent(const std::string& name, const TensorInfo& info, std::string_view file) {
  const std::string tensor = "tensor " + quote(name);
  if (info.begin > info.end) {
    fail_format(file, "data_offsets of " + tensor, "begin <= end",
                std::to_string(info.begin) + ", " + std::to_string(info.end));
  }
  const SpecBytes size = bytes_of(info.dtype, info.shape);
  if (!size.error.empty()) fail_format(file, tensor, "a size in whole bytes below 2^64", size.error);
  if (size.bytes != info.bytes()) {
    fail_format(file, "data_offsets of " + tensor, std::to_string(size.bytes) + " bytes of " + info.dtype,
                std::to_string(info.bytes()));
  }
}

/// Offsets cover [0, data_size) without gap or overlap.
void check_cover(const SafetensorsHeader& header, std::uint64_t data_size, std::string_view file) {
  std::vector<const std::pair<const std::string, TensorInfo>*> order;
  order.reserve(header.tensors.size());
  for (const auto& entry : header.tensors) order.push_back(&entry);
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return std::pair(a->second.begin, a->second.end) < std::pair(b->second.begin, b->second.end);
  });
  std::uint64_t end = 0;
  for (const auto* entry : order) {
    if (entry->second.begin != end) {
      fail_format(file, "data_offsets of tensor " + quote(entry->first),
                  "to begin where the one before ends, at " + std::to_string(end),
                  std::to_string(entry->second.begin));
    }
    end = entry->second.end;
  }
  if (end != data_size) {
    fail_format(file, "data section", std::to_string(end) + " bytes, as the header says",
                std::to_string(data_size));
  }
}

std::uint64_t header_length(std::span<const std::byte> file, std::string_view name) {
  if (file.size() < 8) {
    fail_format(name, "size", "at least 8 bytes of header length", std::to_string(file.size()));
  }
  std::uint64_t length = 0;
  for (std::size_t i = 8; i-- > 0;) length = length << 8 | std::to_integer<std::uint64_t>(file[i]);
  if (length > kMaxHeader) {
    fail_format(name, "header length", "at most " + std::to_string(kMaxHeader), std::to_string(length));
  }
  if (length > file.size() - 8) {
    fail_format(name, "header length",
                "at most the " + std::to_string(file.size() - 8) + " bytes that follow",
                std::to_string(length));
  }
  return length;
}

}  // namespace

std::size_t safetensors_bits(std::string_view dtype) {
  const auto found =
      std::find_if(kDtypes.begin(), kDtypes.end(), [&](const auto& d) { return d.name == dtype; });
  return found == kDtypes.end() ? 0 : found->bits;
}

SpecBytes bytes_of(std::string_view dtype, std::span<const std::uint64_t> shape) {
  std::uint64_t bits = 1;
  for (const std::uint64_t extent : shape) {
    if (!multiply(bits, extent, bits)) return {.error = "an element count beyond 2^64"};
  }
  if (!multiply(bits, safetensors_bits(dtype), bits)) return {.error = "a number of bits beyond 2^64"};
  if (bits % 8 != 0) return {.error = std::to_string(bits) + " bits of " + std::string(dtype)};
  return {.bytes = bits / 8};
}

SafetensorsHeader parse_safetensors(std::span<const std::byte> file, std::string_view name) {
  const std::uint64_t length = header_length(file, name);
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + 8, length);
  if (!text.starts_with('{')) fail_format(name, "header", "JSON that begins with '{'", "something else");
  SafetensorsHeader header = parse_header_json(text, name);
  header.data_begin = 8 + length;
  for (const auto& [tensor, info] : header.tensors) check_extent(tensor, info, name);
  check_cover(header, file.size() - header.data_begin, name);
  return header;
}

SafetensorsFile SafetensorsFile::open(const std::filesystem::path& path, Guard guard) {
  SafetensorsFile result;
  result.file_ = MappedFile(path, guard);
  result.header_ =
      std::make_shared<const SafetensorsHeader>(parse_safetensors(result.file_.bytes(), path.string()));
  return result;
}

const SafetensorsHeader& SafetensorsFile::header() const {
  static const SafetensorsHeader kEmpty;
  return header_ ? *header_ : kEmpty;
}

const TensorInfo& SafetensorsFile::info(std::string_view name) const {
  const auto found = header().tensors.find(name);
  if (found == header().tensors.end()) {
    fail<FormatError>({.op = "safetensors.tensor",
                       .what = quote(file_.path().string()),
                       .expected = "a tensor " + quote(name),
                       .got = std::to_string(header().tensors.size()) + " others"});
  }
  return found->second;
}

std::span<const std::byte> SafetensorsFile::bytes(std::string_view name) const {
  const TensorInfo& tensor = info(name);
  return file_.bytes().subspan(header().data_begin + tensor.begin, tensor.bytes());
}

}  // namespace modicum
