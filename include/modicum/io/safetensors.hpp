// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <modicum/base/atomic_file.hpp>
#include <modicum/base/mapped_file.hpp>

namespace modicum {

/// Where a tensor lies in a safetensors file. `dtype` is spelled as in the file ("F32", "BF16", "I64", …).
struct TensorInfo {
  std::string dtype;
  std::vector<std::uint64_t> shape;
  std::uint64_t begin = 0;  ///< bytes from the start of the data section
  std::uint64_t end = 0;

  std::uint64_t bytes() const noexcept { return end - begin; }
};

/// The header of a safetensors file, checked as the Rust reference's `validate` does.
struct SafetensorsHeader {
  std::map<std::string, TensorInfo> tensors;
  std::map<std::string, std::string> metadata;
  std::uint64_t data_begin = 0;  ///< bytes from the start of the file
};

/// Bytes of one element of a safetensors dtype times 8, or 0 for an unknown name.
std::size_t safetensors_bits(std::string_view dtype);

/// Parses and checks the header of a whole file's bytes: length within 100 MB and the file, UTF-8 JSON that begins
/// with '{', no key twice, known dtypes, no overflow, offsets that cover the data section without gap or overlap and
/// end where the file ends. Throws `FormatError` that says what and where; `name` stands in its text.
SafetensorsHeader parse_safetensors(std::span<const std::byte> file, std::string_view name);

/// A mapped safetensors file.
class SafetensorsFile {
 public:
  static SafetensorsFile open(const std::filesystem::path& path);

  const SafetensorsHeader& header() const noexcept { return header_; }
  const MappedFile& file() const noexcept { return file_; }
  /// Throws `FormatError` where there is no such tensor.
  const TensorInfo& info(std::string_view name) const;
  std::span<const std::byte> bytes(std::string_view name) const;

 private:
  MappedFile file_;
  SafetensorsHeader header_;
};

/// What a tensor that is yet to be written will be.
struct TensorSpec {
  std::string name;
  std::string dtype;
  std::vector<std::uint64_t> shape;
};

/// Writes one safetensors file in the order of `specs`, streaming: bytes are appended tensor by tensor, and the file
/// appears under its path only with `commit`. The data section begins at a multiple of `alignment`.
class SafetensorsWriter {
 public:
  SafetensorsWriter(const std::filesystem::path& path, std::vector<TensorSpec> specs,
                    std::map<std::string, std::string> metadata = {}, std::size_t alignment = 8,
                    unsigned mode = 0644);

  /// Appends bytes of the current tensor; moves on to the next when it is full. Throws `InvalidArgument` where more
  /// comes than the specs hold.
  void append(std::span<const std::byte> bytes);
  /// The header as written, its 8-byte length included.
  std::string_view header() const noexcept { return header_; }
  /// Throws `InvalidArgument` where bytes are missing.
  void commit();

 private:
  std::string header_;
  std::uint64_t expected_ = 0;
  std::uint64_t written_ = 0;
  AtomicFile file_;
};

}  // namespace modicum
