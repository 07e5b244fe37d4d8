// SPDX-License-Identifier: Apache-2.0
#include "copy_files.hpp"

#include <algorithm>
#include <iterator>
#include <span>
#include <system_error>

#include <modicum/base/atomic_file.hpp>
#include <modicum/base/error.hpp>
#include <modicum/base/mapped_file.hpp>

#include "../base/quote.hpp"

namespace modicum {

namespace fs = std::filesystem;

bool is_weights(const fs::path& name) {
  static constexpr std::string_view kEndings[] = {".safetensors", ".safetensors.index.json",
                                                  ".bin",         ".bin.index.json",
                                                  ".pt",          ".pth",
                                                  ".gguf",        ".h5",
                                                  ".msgpack",     ".onnx"};
  const std::string text = name.string();
  return std::any_of(std::begin(kEndings), std::end(kEndings),
                     [&](std::string_view ending) { return text.ends_with(ending); });
}

void copy_other_files(const fs::path& from, const fs::path& to, std::string_view op) {
  std::error_code code;
  fs::directory_iterator entries(from, code);
  if (code)
    fail<IoError>({.op = op, .what = "listing " + quote(from.string()) + ", failed: " + code.message()});
  for (const fs::directory_entry& entry : entries) {
    const fs::path name = entry.path().filename();
    const bool skip = name == "config.json" || is_weights(name) || name.string().starts_with(".");
    if (!skip && entry.is_regular_file(code)) copy_verbatim(entry.path(), to / name);
  }
}

void copy_verbatim(const fs::path& from, const fs::path& to, const std::function<void(std::uint64_t)>& tell) {
  constexpr std::size_t kPart = std::size_t{16} << 20;
  const MappedFile file(from);
  AtomicFile copy(to);
  for (std::size_t done = 0; done < file.bytes().size(); done += kPart) {
    if (tell) tell(done);
    copy.write(file.bytes().subspan(done, std::min(kPart, file.bytes().size() - done)));
  }
  copy.commit();
}

void write_text(const fs::path& path, std::string_view text) {
  AtomicFile file(path);
  file.write(std::as_bytes(std::span(text)));
  file.commit();
}

}  // namespace modicum
