// SPDX-License-Identifier: Apache-2.0
#include "existing.hpp"

#include <system_error>

#include <modicum/base/error.hpp>

#include "quote.hpp"

namespace modicum {

namespace fs = std::filesystem;

fs::path settled(const fs::path& path) {
  std::error_code code;
  // A relative path of which nothing is there would stay relative, and a single name without a parent.
  const fs::path whole = fs::absolute(path, code);
  fs::path found = fs::weakly_canonical(whole, code);
  if (code) found = whole.lexically_normal();
  return found.has_filename() ? found : found.parent_path();
}

void refuse_existing(const fs::path& path, std::string_view op) {
  std::error_code code;
  if (!fs::exists(fs::symlink_status(path, code))) return;
  const bool directory = fs::is_directory(path, code);
  if (directory && fs::is_empty(path, code) && !code) return;
  fail({.op = op,
        .what = quote(path.string()),
        .expected = "no such directory yet, or an empty one",
        .got = directory ? "one that holds something" : "a file",
        .todo = "choose another path, or remove what is there first"});
}

}  // namespace modicum
