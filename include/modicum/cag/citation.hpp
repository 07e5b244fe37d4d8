// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <modicum/cag/manifest.hpp>

namespace modicum::cag {

/// Where an answer stands: one line of one document.
struct Citation {
  std::string document;    ///< the document's name
  std::string source;      ///< its file, as given when the cache was built
  std::string heading;     ///< the nearest heading above the line; empty: none
  std::size_t page = 0;    ///< of the original, counted from 1; 0: it has no pages
  ByteRange bytes;         ///< of the line in the text: in the file's own bytes unless `converted`
  bool converted = false;  ///< the file is of another kind, and its text was made from it
  std::size_t line = 0;    ///< counted from 1
  std::string quote;       ///< the line: exactly those bytes
  bool literal = false;    ///< the line holds the answer, or the part of it that is cited, word for word
  double attention = 0;    ///< share of the documents' attention that lay on the line while answering
};

/// What the model looked at: one weight for each token of a knowledge file, and where the tokens begin.
struct TokenAttention {
  std::span<const float> mass;
  std::span<const std::uint64_t> begins;  ///< bytes of the prompt
};

/// The lines of the documents that support `answer`: found by what the model attended to and by words they
/// share with the question, and verified by text: a line counts where it holds the answer literally (but for
/// the case of ASCII letters, surrounding white space and a final full stop) or, where no line does, most of
/// its words. An answer of several sentences is cited sentence by sentence where no line holds it whole.
/// `attention` may be empty. Empty where nothing supports it.
std::vector<Citation> cite(std::string_view prompt, std::span<const KnownDocument> documents,
                           std::string_view question, std::string_view answer,
                           const TokenAttention& attention = {});

}  // namespace modicum::cag
