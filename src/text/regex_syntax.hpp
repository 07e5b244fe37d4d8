// SPDX-License-Identifier: Apache-2.0
// From the regular expressions of tokenizer.json to PCRE2 over the alphabet of regex_alphabet.hpp.
#pragma once

#include <string>
#include <string_view>

#include "regex_alphabet.hpp"

namespace modicum::text {

struct TranslatedPattern {
  std::string pcre2;
  Alphabet alphabet;
};

/// Translates `pattern`, valid UTF-8. Throws `Unsupported` naming any construct whose meaning in PCRE2 is not
/// known to be the same, `FormatError` where the pattern is broken.
TranslatedPattern translate_pattern(std::string_view pattern);

}  // namespace modicum::text
