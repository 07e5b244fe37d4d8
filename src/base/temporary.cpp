// SPDX-License-Identifier: Apache-2.0
#include "temporary.hpp"

#include <cerrno>
#include <random>

#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

namespace modicum {
namespace {

constexpr std::string_view kSuffix = ".tmp";
constexpr std::size_t kRandomDigits = 16;

std::string random_digits() {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::random_device device;
  std::string text;
  while (text.size() < kRandomDigits) text += kDigits[device() & 15u];
  return text;
}

bool consists_of(std::string_view text, std::string_view characters) {
  return !text.empty() && text.find_first_not_of(characters) == std::string_view::npos;
}

}  // namespace

std::filesystem::path directory_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
}

std::string stem_of(const std::filesystem::path& path) {
  return path.filename().string().substr(0, 200) + ".";
}

std::filesystem::path temporary_of(const std::filesystem::path& path) {
  return directory_of(path) /
         (stem_of(path) + std::to_string(::getpid()) + "-" + random_digits() + std::string(kSuffix));
}

bool is_temporary(std::string_view name, std::string_view stem) {
  if (!name.starts_with(stem) || !name.ends_with(kSuffix)) return false;
  if (name.size() < stem.size() + kSuffix.size()) return false;
  name = name.substr(stem.size(), name.size() - stem.size() - kSuffix.size());
  const std::size_t dash = name.find('-');
  return dash != std::string_view::npos && consists_of(name.substr(0, dash), "0123456789") &&
         name.size() - dash - 1 == kRandomDigits && consists_of(name.substr(dash + 1), "0123456789abcdef");
}

bool claim(int descriptor) {
  while (::flock(descriptor, LOCK_EX) != 0 && errno == EINTR) {
  }
  struct stat status{};
  return ::fstat(descriptor, &status) == 0 && status.st_nlink > 0;
}

}  // namespace modicum
