// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include <modicum/cag/knowledge_file.hpp>

namespace modicum::cag {

/// Where an answer stands: one line of one document.
struct Citation {
  std::string document;  ///< the document's name
  std::string source;    ///< its file, as given when the cache was built
  ByteRange bytes;       ///< of the line in that file
  std::size_t line = 0;  ///< counted from 1
  std::string quote;     ///< the line: exactly those bytes
};

/// The line of the documents that holds `answer` literally (but for the case of ASCII letters, surrounding
/// white space and a final full stop). Where several do, the one that shares most with the question, rare
/// words counting more; words of the heading above it and of the document's name count half. Empty where no
/// line does.
std::optional<Citation> cite(std::string_view prompt, std::span<const KnownDocument> documents,
                             std::string_view question, std::string_view answer);

}  // namespace modicum::cag
