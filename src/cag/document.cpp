// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <optional>
#include <set>
#include <string_view>

#include <modicum/base/error.hpp>
#include <modicum/base/mapped_file.hpp>
#include <modicum/cag/document.hpp>

#include "../text/unicode.hpp"

namespace modicum::cag {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kOp = "cag.documents";

bool is_text(const fs::path& path) {
  std::string suffix = path.extension().string();
  std::transform(suffix.begin(), suffix.end(), suffix.begin(),
                 [](unsigned char c) { return std::tolower(c); });
  return suffix == ".txt" || suffix == ".md" || suffix == ".markdown";
}

/// The offset of the first byte that is not UTF-8, or is NUL.
std::optional<std::size_t> bad_byte(std::string_view bytes) {
  const std::size_t at = std::min(text::find_invalid_utf8(bytes), bytes.find('\0'));
  return at < bytes.size() ? std::optional(at) : std::nullopt;
}

Document read(const fs::path& path, std::string name) {
  const MappedFile file(path);
  const auto bytes = file.bytes();
  return {std::move(name), path.string(),
          std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size())};
}

void check(const Document& document) {
  const std::string what = "'" + document.source + "'";
  if (const auto at = bad_byte(document.text)) {
    fail<FormatError>({.op = kOp,
                       .what = what,
                       .expected = "UTF-8 text",
                       .got = "byte " + std::to_string(static_cast<unsigned char>(document.text[*at])) +
                              " at offset " + std::to_string(*at),
                       .todo = "save it as UTF-8"});
  }
  if (document.text.find_first_not_of(" \t\r\n") == std::string::npos) {
    fail({.op = kOp, .what = what, .expected = "some text", .got = "an empty document"});
  }
  if (!std::is_sorted(document.pages.begin(), document.pages.end()) ||
      (!document.pages.empty() && document.pages.back() > document.text.size())) {
    fail(
        {.op = kOp,
         .what = what + ": pages",
         .expected = "ascending offsets within the text's " + std::to_string(document.text.size()) + " bytes",
         .got = "others"});
  }
}

void read_folder(const fs::path& folder, std::vector<Document>& documents) {
  std::vector<std::string> names;
  std::string others;
  for (auto entry = fs::recursive_directory_iterator(folder); entry != fs::end(entry); ++entry) {
    if (entry->path().filename().string().starts_with('.')) {
      if (entry->is_directory()) entry.disable_recursion_pending();
      continue;
    }
    if (entry->is_directory()) continue;
    const std::string name = entry->path().lexically_relative(folder).generic_string();
    if (entry->is_regular_file() && is_text(entry->path())) {
      names.push_back(name);
    } else {
      others += (others.empty() ? "" : ", ") + name;
    }
  }
  if (!others.empty()) {
    fail<Unsupported>({.op = kOp,
                       .what = "folder '" + folder.string() + "'",
                       .expected = "text and markdown files",
                       .got = others,
                       .todo = "convert these or move them away; nothing is left out silently"});
  }
  std::sort(names.begin(), names.end());
  for (const std::string& name : names) documents.push_back(read(folder / name, name));
}

}  // namespace

void check_documents(std::span<const Document> documents) {
  if (documents.empty()) {
    fail({.op = kOp, .what = "sources", .expected = "at least one text or markdown file", .got = "none"});
  }
  for (const Document& document : documents) check(document);
  std::set<std::string_view> names;
  for (const Document& document : documents) {
    if (!names.insert(document.name).second) {
      fail({.op = kOp,
            .what = "document names",
            .expected = "each once",
            .got = "'" + document.name + "' twice",
            .todo = "rename one, or give the folder above both as the source"});
    }
  }
}

std::vector<Document> read_documents(std::span<const fs::path> sources) {
  std::vector<Document> documents;
  try {
    for (const fs::path& source : sources) {
      if (fs::is_directory(source)) {
        read_folder(source, documents);
      } else {
        documents.push_back(read(source, source.filename().string()));
      }
    }
  } catch (const fs::filesystem_error& error) {
    fail<IoError>({.op = kOp, .what = error.what()});
  }
  check_documents(documents);
  return documents;
}

}  // namespace modicum::cag
