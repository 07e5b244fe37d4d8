// SPDX-License-Identifier: Apache-2.0
// Names and locks of what is written beside a path before it is renamed over it.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace modicum {

std::filesystem::path directory_of(const std::filesystem::path& path);

/// What the names of all temporaries of `path` begin with; cut so that they fit into 255 bytes.
std::string stem_of(const std::filesystem::path& path);

/// A new path beside `path`: `<stem><pid>-<random>.tmp`.
std::filesystem::path temporary_of(const std::filesystem::path& path);

/// Whether `name` reads `<stem><pid>-<random>.tmp`.
bool is_temporary(std::string_view name, std::string_view stem);

/// Takes the lock that marks `descriptor` as in use. False where a cleaner unlinked it just before.
bool claim(int descriptor);

}  // namespace modicum
