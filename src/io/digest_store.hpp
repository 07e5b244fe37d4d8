// SPDX-License-Identifier: Apache-2.0
// Digests of large files, remembered from one process to the next.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

namespace modicum {

/// A folder with one small file an entry. It may be lost, read-only or full of rubbish at any time: whatever
/// goes wrong means that nothing is known, and nothing throws.
class DigestStore {
 public:
  /// The user's own: $MODICUM_CACHE_DIR, else $XDG_CACHE_HOME/modicum, else ~/.cache/modicum. One that knows
  /// and keeps nothing where MODICUM_CACHE_DIR is set but empty, or no home is known.
  static DigestStore of_user();
  explicit DigestStore(std::filesystem::path directory) : directory_(std::move(directory)) {}

  /// The digest (of 32 hexadecimal digits) that was kept for exactly this `key`. Entries that another user
  /// wrote, or could have written to, do not count.
  std::optional<std::string> find(std::string_view key) const noexcept;
  /// Creates the folder (mode 0700) where it is missing, and the entry (0600) whole or not at all.
  void keep(std::string_view key, std::string_view digest) const noexcept;

 private:
  std::filesystem::path entry_of(std::string_view key) const;

  std::filesystem::path directory_;  ///< empty: switched off
};

}  // namespace modicum
