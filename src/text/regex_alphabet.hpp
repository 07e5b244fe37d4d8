// SPDX-License-Identifier: Apache-2.0
// How patterns see text.
//
// `tokenizers` matches with Oniguruma and its Unicode version, PCRE2 brings another one. So PCRE2 is kept out
// of Unicode altogether: every non-ASCII code point is written as one byte that stands for all code points
// which the pattern cannot tell apart (same category, same \s and \w, same side of every code point that the
// pattern names), and every class of the pattern becomes a set of bytes.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace modicum::text {

/// The alphabet of one pattern: ASCII stands for itself, bytes from 0x80 for classes of code points.
class Alphabet {
 public:
  /// `boundaries`: the code points at which the pattern begins to tell code points apart. Throws
  /// `Unsupported` where more than 128 classes are needed.
  explicit Alphabet(std::vector<char32_t> boundaries);

  unsigned char letter(char32_t code_point) const;
  /// `text`, a byte for each code point.
  std::string spell(std::string_view text) const;
  /// One code point for each letter in use.
  const std::vector<std::pair<unsigned char, char32_t>>& examples() const { return examples_; }

 private:
  std::vector<char32_t> boundaries_;
  std::vector<std::array<unsigned char, 256>> letters_;  ///< by interval between boundaries, by property row
  std::vector<std::pair<unsigned char, char32_t>> examples_;
};

}  // namespace modicum::text
