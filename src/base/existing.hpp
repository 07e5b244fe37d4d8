// SPDX-License-Identifier: Apache-2.0
// Where a directory is to appear.
#pragma once

#include <filesystem>
#include <string_view>

namespace modicum {

/// `path` without links and dots, as far as it is there, and without a slash at its end.
std::filesystem::path settled(const std::filesystem::path& path);

/// Throws `InvalidArgument` where `path` is there and is not an empty directory.
void refuse_existing(const std::filesystem::path& path, std::string_view op);

}  // namespace modicum
