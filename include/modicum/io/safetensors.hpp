// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
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

/// The header of a safetensors file, checked as the Rust reference does.
struct SafetensorsHeader {
  std::map<std::string, TensorInfo, std::less<>> tensors;
  std::map<std::string, std::string> metadata;
  std::uint64_t data_begin = 0;  ///< bytes from the start of the file
};

/// Bits of one element of a safetensors dtype, or 0 for an unknown name.
std::size_t safetensors_bits(std::string_view dtype);

/// Parses and checks the header of a whole file's bytes: length within 100 MB and the file, UTF-8 JSON that
/// begins with '{', known dtypes, no overflow, offsets that cover the data section without gap or overlap and
/// end where the file ends. Stricter than the reference where its leniency is an accident of its JSON
/// library: no key twice (it takes the last), tensors as objects only (it also takes arrays). Throws
/// `FormatError` that says what and where; `name` stands in its text.
SafetensorsHeader parse_safetensors(std::span<const std::byte> file, std::string_view name);

/// A mapped safetensors file. Copies share the mapping and the header.
class SafetensorsFile {
 public:
  /// Throws `IoError` where the file cannot be read, `FormatError` as `parse_safetensors`.
  static SafetensorsFile open(const std::filesystem::path& path, Guard guard = Guard::no);

  const SafetensorsHeader& header() const;
  const MappedFile& file() const noexcept { return file_; }
  /// Throws `FormatError` where there is no such tensor.
  const TensorInfo& info(std::string_view name) const;
  std::span<const std::byte> bytes(std::string_view name) const;

 private:
  MappedFile file_;
  std::shared_ptr<const SafetensorsHeader> header_;
};

/// What a tensor that is yet to be written will be.
struct TensorSpec {
  std::string name;
  std::string dtype;
  std::vector<std::uint64_t> shape;
};

/// Writes one safetensors file in the order of `specs`, streaming: bytes are appended tensor by tensor, and
/// the file appears under its path only with `commit`. The data section begins at a multiple of `alignment`;
/// within it the tensors lie end to end, so those with the widest elements should come first.
class SafetensorsWriter {
 public:
  /// `mode`: permission bits of the file. Throws `InvalidArgument` for specs that the format cannot hold,
  /// `IoError`.
  SafetensorsWriter(const std::filesystem::path& path, const std::vector<TensorSpec>& specs,
                    const std::map<std::string, std::string>& metadata = {}, std::size_t alignment = 8,
                    unsigned mode = 0644);

  /// Appends bytes, of as many tensors as they reach into. Throws `InvalidArgument` where more comes than the
  /// specs hold.
  void append(std::span<const std::byte> bytes);
  /// Bytes that the specs still wait for.
  std::uint64_t remaining() const noexcept { return expected_ - written_; }
  /// The header as written, its 8-byte length included.
  std::string_view header() const noexcept { return header_; }
  /// Throws `InvalidArgument` where bytes are missing. `replaced`: see `AtomicFile::commit_over`.
  void commit(const std::optional<FileIdentity>& replaced = std::nullopt);

 private:
  std::uint64_t expected_ = 0;
  std::uint64_t written_ = 0;
  std::string header_;
  AtomicFile file_;
};

}  // namespace modicum
