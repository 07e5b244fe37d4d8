// SPDX-License-Identifier: Apache-2.0
#include <modicum/cag/document.hpp>

#include <algorithm>
#include <optional>
#include <set>
#include <string_view>

#include <modicum/base/error.hpp>
#include <modicum/base/mapped_file.hpp>

namespace modicum::cag {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kOp = "cag.documents";

bool is_text(const fs::path& path) {
  std::string suffix = path.extension().string();
  std::transform(suffix.begin(), suffix.end(), suffix.begin(), [](unsigned char c) { return std::tolower(c); });
  return suffix == ".txt" || suffix == ".md" || suffix == ".markdown";
}

/// The offset of the first byte that is not well-formed UTF-8 (Unicode 16, table 3-7), or is NUL.
std::optional<std::size_t> bad_byte(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i]);
    std::size_t length = lead < 0x80 ? 1 : lead < 0xc2 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : lead < 0xf5 ? 4 : 0;
    if (lead == 0 || length == 0 || i + length > text.size()) return i;
    for (std::size_t j = 1; j < length; ++j) {
      const auto next = static_cast<unsigned char>(text[i + j]);
      const unsigned char low = j > 1 ? 0x80 : lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
      const unsigned char high = j > 1 ? 0xbf : lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
      if (next < low || next > high) return i;
    }
    i += length;
  }
  return std::nullopt;
}

Document read(const fs::path& path, std::string name) {
  const MappedFile file(path);
  const auto bytes = file.bytes();
  Document document{std::move(name), path.string(), std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size())};
  if (const auto at = bad_byte(document.text)) {
    fail<FormatError>({.op = kOp, .what = "'" + path.string() + "'", .expected = "UTF-8 text",
                       .got = "byte " + std::to_string(static_cast<unsigned char>(document.text[*at])) +
                              " at offset " + std::to_string(*at),
                       .todo = "save it as UTF-8"});
  }
  if (document.text.find_first_not_of(" \t\r\n") == std::string::npos) {
    fail({.op = kOp, .what = "'" + path.string() + "'", .expected = "some text", .got = "an empty document"});
  }
  return document;
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
    fail<Unsupported>({.op = kOp, .what = "folder '" + folder.string() + "'", .expected = "text and markdown files",
                       .got = others, .todo = "convert these or move them away; nothing is left out silently"});
  }
  std::sort(names.begin(), names.end());
  for (const std::string& name : names) documents.push_back(read(folder / name, name));
}

}  // namespace

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
  if (documents.empty()) {
    fail({.op = kOp, .what = "sources", .expected = "at least one text or markdown file", .got = "none"});
  }
  std::set<std::string> names;
  for (const Document& document : documents) {
    if (!names.insert(document.name).second) {
      fail({.op = kOp, .what = "document names", .expected = "each once", .got = "'" + document.name + "' twice",
            .todo = "rename one, or give the folder above both as the source"});
    }
  }
  return documents;
}

}  // namespace modicum::cag
