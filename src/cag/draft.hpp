// SPDX-License-Identifier: Apache-2.0
// What building, adopting, updating and planning have in common.
#pragma once

#include <filesystem>
#include <optional>
#include <span>
#include <vector>

#include <modicum/cag/build.hpp>

#include "reading.hpp"

namespace modicum::cag {

/// A knowledge file before the model has read anything.
struct Draft {
  std::vector<Document> documents;  ///< in the order of the file: those that change often come last
  Manifest manifest;                ///< without documents and segments of this file, until it is written
  SharedPrompt prompt;
};

/// Of a new file. Throws what `check_documents` throws, and where options do not go together.
Draft make_draft(const Model& model, std::span<const Document> documents, const BuildOptions& options);
/// As `manifest` says, of documents that `check_documents` lets pass.
Draft make_draft(const Model& model, std::vector<Document> documents, Manifest manifest);

/// Before minutes of work: throws `ContextOverflow` where the prompt does not fit, and `IoError` where the
/// file could not be written.
void check_possible(const Model& model, const Draft& draft, const std::filesystem::path& path);

/// Writes what was read, over what is there or, with `replaced`, only over that file.
void write_draft(const std::filesystem::path& path, Draft& draft, const Reading& reading,
                 const std::optional<FileIdentity>& replaced = std::nullopt);

}  // namespace modicum::cag
