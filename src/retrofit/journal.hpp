// SPDX-License-Identifier: Apache-2.0
// What a run has done so far, kept so that one that was killed can go on.
#pragma once

#include <cstddef>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <modicum/io/safetensors.hpp>
#include <modicum/retrofit/run.hpp>

#include "student_layer.hpp"

namespace modicum::retrofit {

/// A layer that is done: its new tensors, mapped, and the errors of its edits.
struct LayerRecord {
  std::optional<SafetensorsFile> file;  ///< empty: no tensor is new
  std::vector<EditError> errors;
  bool diverged = false;  ///< whether what it gives differs from the original's
};

/// A folder `.<name>.retrofit-<key>` beside the output, with a file for each layer that is done. Only one
/// process at a time may hold it. `finish` removes it, and what runs with other keys left.
class Journal {
 public:
  /// Throws `InvalidArgument` where another process is at work on the same output.
  Journal(const std::filesystem::path& to, const std::filesystem::path& work, const std::string& key);
  ~Journal();
  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;

  const std::filesystem::path& folder() const noexcept { return folder_; }
  std::optional<LayerRecord> find(std::size_t step) const;
  LayerRecord save(std::size_t step, std::vector<NewTensor> tensors, std::vector<EditError> errors,
                   bool diverged);
  void finish() noexcept;

 private:
  std::filesystem::path path_of(std::size_t step) const;

  std::filesystem::path folder_;
  std::string prefix_;
  int lock_ = -1;
};

}  // namespace modicum::retrofit
