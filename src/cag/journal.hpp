// SPDX-License-Identifier: Apache-2.0
// Where a long reading stands, for the one that begins anew after a crash.
#pragma once

#include <chrono>
#include <filesystem>
#include <optional>

#include <modicum/cag/knowledge_file.hpp>

#include "reading.hpp"

namespace modicum::cag {

/// Keeps what was read so far beside the file that is being built: a knowledge file without documents, named
/// `<path>.partial`, that is removed when the whole is there. A build that finds one takes over its keys and
/// values, as an update does with those of the old file.
class Journal {
 public:
  /// `seconds`: between two saves.
  Journal(const Model& model, const Manifest& manifest, const std::filesystem::path& path, double seconds);

  /// What an earlier build of this model left, if its bytes are as they were written. One that does not
  /// belong here is of no use, and no error.
  std::optional<KnowledgeFile> find() const;
  bool due() const;
  /// `ids` are the tokens of the reading's segments, one after another.
  void save(const Reading& reading, std::vector<TokenId> ids);
  void remove() const noexcept;

 private:
  const Model& model_;
  Manifest manifest_;
  std::filesystem::path path_;
  std::chrono::duration<double> interval_;
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

}  // namespace modicum::cag
