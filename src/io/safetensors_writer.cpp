// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <set>
#include <utility>

#include <modicum/io/safetensors.hpp>

#include "../base/json.hpp"
#include "../base/quote.hpp"
#include "safetensors_header.hpp"

namespace modicum {
namespace {

constexpr std::string_view kOp = "safetensors.write";
constexpr std::uint64_t kMaxHeader = 100'000'000;

[[noreturn]] void fail_spec(const std::string& name, std::string expected, std::string got) {
  fail({.op = kOp, .what = "tensor " + quote(name), .expected = std::move(expected), .got = std::move(got)});
}

/// The JSON of the header; the order of the keys is that of the data, as the reference writes it.
std::string header_json(const std::vector<TensorSpec>& specs,
                        const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  // Appended by hand: ordered_json's [] looks through all keys before it.
  auto& entries = json.get_ref<nlohmann::ordered_json::object_t&>();
  if (!metadata.empty()) entries.emplace_back("__metadata__", metadata);
  std::uint64_t begin = 0;
  for (const TensorSpec& spec : specs) {
    const std::uint64_t end = begin + bytes_of(spec.dtype, spec.shape).bytes;
    entries.emplace_back(
        spec.name,
        nlohmann::ordered_json{{"dtype", spec.dtype}, {"shape", spec.shape}, {"data_offsets", {begin, end}}});
    begin = end;
  }
  try {
    return json.dump();
  } catch (const Json::exception& error) {
    fail({.op = kOp, .what = "names and metadata", .expected = "UTF-8", .got = json_error_text(error)});
  }
}

}  // namespace

std::string header_bytes(const std::vector<TensorSpec>& specs,
                         const std::map<std::string, std::string>& metadata, std::size_t alignment) {
  std::string json = header_json(specs, metadata);
  if (alignment == 0) fail({.op = kOp, .what = "alignment", .expected = "at least 1", .got = "0"});
  const std::size_t size = 8 + json.size();
  json.append((alignment - size % alignment) % alignment, ' ');
  if (json.size() > kMaxHeader) {
    fail({.op = kOp,
          .what = "header",
          .expected = "at most " + std::to_string(kMaxHeader) + " bytes",
          .got = std::to_string(json.size())});
  }
  std::string length;
  for (int shift = 0; shift < 64; shift += 8) length += static_cast<char>(json.size() >> shift & 0xffu);
  return length + json;
}

std::uint64_t check_specs(std::span<const TensorSpec> specs) {
  std::set<std::string_view> seen;
  std::uint64_t total = 0;
  for (const TensorSpec& spec : specs) {
    if (spec.name == "__metadata__") fail_spec(spec.name, "another name", "the one that the format reserves");
    if (!seen.insert(spec.name).second) fail_spec(spec.name, "each name once", "it twice");
    if (safetensors_bits(spec.dtype) == 0) fail_spec(spec.name, "a known dtype", quote(spec.dtype));
    const SpecBytes size = bytes_of(spec.dtype, spec.shape);
    if (!size.error.empty()) fail_spec(spec.name, "a size in whole bytes below 2^64", size.error);
    if (size.bytes > UINT64_MAX - total) fail_spec(spec.name, "a file below 2^64 bytes", "more");
    total += size.bytes;
  }
  return total;
}

SafetensorsWriter::SafetensorsWriter(const std::filesystem::path& path, const std::vector<TensorSpec>& specs,
                                     const std::map<std::string, std::string>& metadata,
                                     std::size_t alignment, unsigned mode)
    : expected_(check_specs(specs)), header_(header_bytes(specs, metadata, alignment)), file_(path, mode) {
  file_.write(std::as_bytes(std::span(header_)));
}

void SafetensorsWriter::append(std::span<const std::byte> bytes) {
  if (bytes.size() > remaining()) {
    fail({.op = kOp,
          .what = "data of " + quote(file_.path().string()),
          .expected = "at most " + std::to_string(remaining()) + " bytes more",
          .got = std::to_string(bytes.size())});
  }
  file_.write(bytes);
  written_ += bytes.size();
}

void SafetensorsWriter::commit(const std::optional<FileIdentity>& replaced) {
  if (remaining() != 0) {
    fail({.op = kOp,
          .what = "data of " + quote(file_.path().string()),
          .expected = std::to_string(expected_) + " bytes",
          .got = std::to_string(written_)});
  }
  replaced ? file_.commit_over(*replaced) : file_.commit();
}

}  // namespace modicum
