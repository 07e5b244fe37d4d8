// SPDX-License-Identifier: Apache-2.0
#include "digest_store.hpp"

#include <cstdlib>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <modicum/base/atomic_file.hpp>
#include <modicum/base/hash.hpp>

#include "../base/json.hpp"

namespace modicum {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kSchema = "modicum.digest/1";
constexpr std::size_t kMostBytes = std::size_t{1} << 20;

bool is_digest(std::string_view text) {
  return text.size() == 32 && text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

std::string seal_of(std::string_view key, std::string_view digest) {
  return hash128_hex(std::string(digest).append("\n").append(key));
}

/// The content of a regular file of the caller's own that nobody else may write to; else empty.
std::string read_own(const fs::path& path) {
  std::string text;
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (descriptor < 0) return text;
  struct stat status{};
  const bool ours = ::fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode) &&
                    status.st_uid == ::geteuid() && (status.st_mode & (S_IWGRP | S_IWOTH)) == 0 &&
                    static_cast<std::size_t>(status.st_size) <= kMostBytes;
  if (ours) {
    text.resize(static_cast<std::size_t>(status.st_size));
    const auto count = ::read(descriptor, text.data(), text.size());
    text.resize(count > 0 ? static_cast<std::size_t>(count) : 0);
  }
  ::close(descriptor);
  return text;
}

}  // namespace

DigestStore DigestStore::of_user() {
  if (const char* chosen = std::getenv("MODICUM_CACHE_DIR")) return DigestStore(chosen);
  // The XDG base directory specification has relative paths ignored.
  if (const char* caches = std::getenv("XDG_CACHE_HOME"); caches != nullptr && caches[0] == '/') {
    return DigestStore(fs::path(caches) / "modicum");
  }
  if (const char* home = std::getenv("HOME"); home != nullptr && home[0] == '/') {
    return DigestStore(fs::path(home) / ".cache" / "modicum");
  }
  return DigestStore(fs::path());
}

fs::path DigestStore::entry_of(std::string_view key) const {
  return directory_ / (hash128_hex(key) + ".digest.json");
}

std::optional<std::string> DigestStore::find(std::string_view key) const noexcept try {
  if (directory_.empty()) return std::nullopt;
  const std::string text = read_own(entry_of(key));
  if (text.empty()) return std::nullopt;
  const Json json = parse_json(text, "digest.find", "entry");
  const JsonFields entry(json, "digest.find", "entry.");
  std::string digest = entry.text("digest");
  const bool whole = entry.text("schema") == kSchema && entry.text("key") == key && is_digest(digest) &&
                     entry.text("seal") == seal_of(key, digest);
  return whole ? std::optional(std::move(digest)) : std::nullopt;
} catch (...) {
  return std::nullopt;
}

void DigestStore::keep(std::string_view key, std::string_view digest) const noexcept try {
  if (directory_.empty()) return;
  std::error_code ignored;
  if (directory_.has_parent_path()) fs::create_directories(directory_.parent_path(), ignored);
  ::mkdir(directory_.c_str(), 0700);
  const std::string text =
      Json{{"schema", kSchema}, {"key", key}, {"digest", digest}, {"seal", seal_of(key, digest)}}.dump() +
      "\n";
  if (text.size() > kMostBytes) return;
  AtomicFile file(entry_of(key), 0600);
  file.write(std::as_bytes(std::span(text)));
  file.commit();
} catch (...) {
  // The next process hashes again.
}

}  // namespace modicum
