// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <span>

#include <modicum/cag/build.hpp>

namespace modicum::cag {

/// Writes a knowledge file of `documents` in the place of `old`, in its layout and encoding, taking over what
/// `old` has read.
Changes write_update(const Model& model, const std::filesystem::path& path, const KnowledgeFile& old,
                     std::span<const Document> documents, const Progress& progress);

}  // namespace modicum::cag
