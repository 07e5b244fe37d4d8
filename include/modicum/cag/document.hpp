// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace modicum::cag {

/// A text that questions are asked about.
struct Document {
  std::string name;    ///< as shown to the model and in citations: the path below its source folder, with '/'
  std::string source;  ///< the file's path as given
  std::string text;    ///< the file's bytes, UTF-8; a byte order mark is part of them
  std::vector<std::size_t> pages = {};  ///< of a converted file: where each page begins, in bytes of `text`
  bool converted = false;               ///< `text` was made from a file of another kind
  bool changes_often = false;           ///< to stand behind all others
};

/// Refuses what cannot be cached: no document at all, text that is not UTF-8, holds a NUL or is empty, two of
/// one name, and pages that do not ascend within the text. Throws as `read_documents` does.
void check_documents(std::span<const Document> documents);

/// Reads text (.txt) and markdown (.md, .markdown) files, and folders of them in full depth, sorted by name
/// within each source; entries whose name begins with '.' are left out. A file that is named itself may have
/// any suffix. Throws `IoError` for what is not there or cannot be read; `Unsupported` that lists files of
/// other kinds in a folder; `FormatError` with the byte offset for text that is not UTF-8 or holds a NUL;
/// `InvalidArgument` for no document at all, an empty one, and two of one name.
std::vector<Document> read_documents(std::span<const std::filesystem::path> sources);

}  // namespace modicum::cag
