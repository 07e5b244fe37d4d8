// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>

#include <modicum/base/progress.hpp>
#include <modicum/cag/knowledge.hpp>
#include <modicum/cag/prompt.hpp>

namespace modicum::cag {

struct BuildOptions {
  PromptFormat format = {};
  /// Tokens of the context that must be left for a question and its answer.
  std::size_t reserve = 64;
};

/// Reads the documents once and writes what the model keeps of them to `path`: one causal pass, exact. A file
/// that was there stays until the new one is whole, and processes that have it open keep it.
///
/// Throws before any work: what `read_documents` throws, `ContextOverflow` with both counts and each
/// document's share, and `IoError` where `path` cannot be written or the disk is too full. `Cancelled` leaves
/// nothing behind.
Knowledge build(const Model& model, std::span<const std::filesystem::path> sources,
                const std::filesystem::path& path, const BuildOptions& options = {},
                const Progress& progress = {});

}  // namespace modicum::cag
