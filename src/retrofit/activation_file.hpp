// SPDX-License-Identifier: Apache-2.0
// Activations of all calibration tokens: too many for memory, so in a mapped file.
#pragma once

#include <cstddef>
#include <filesystem>

namespace modicum::retrofit {

/// A matrix of f32 in a mapped file. Its pages are the page cache's: the system writes them out and takes
/// them back as it needs.
class ActivationFile {
 public:
  ActivationFile() = default;
  /// A new file with room on disk for all of it, so that a full disk is an error here. Throws `IoError`.
  static ActivationFile create(const std::filesystem::path& path, std::size_t rows, std::size_t width);
  /// Throws `IoError`, and `FormatError` where the size is another.
  static ActivationFile open(const std::filesystem::path& path, std::size_t rows, std::size_t width);
  ActivationFile(ActivationFile&& other) noexcept;
  ActivationFile& operator=(ActivationFile&& other) noexcept;
  ~ActivationFile();

  bool empty() const noexcept { return data_ == nullptr; }
  float* row(std::size_t i) noexcept { return data_ + i * width_; }
  const float* row(std::size_t i) const noexcept { return data_ + i * width_; }
  /// Everything is on disk after it. Throws `IoError`.
  void sync() const;

 private:
  ActivationFile(const std::filesystem::path& path, int flags, std::size_t rows, std::size_t width);

  std::filesystem::path path_;
  float* data_ = nullptr;
  std::size_t width_ = 0;
  std::size_t bytes_ = 0;
};

}  // namespace modicum::retrofit
