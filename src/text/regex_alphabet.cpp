// SPDX-License-Identifier: Apache-2.0
#include "regex_alphabet.hpp"

#include <algorithm>
#include <map>
#include <tuple>

#include <modicum/base/error.hpp>

#include "unicode.hpp"

namespace modicum::text {

Alphabet::Alphabet(std::vector<char32_t> boundaries) : boundaries_(std::move(boundaries)) {
  boundaries_.push_back(0x80);
  std::sort(boundaries_.begin(), boundaries_.end());
  boundaries_.erase(std::unique(boundaries_.begin(), boundaries_.end()), boundaries_.end());
  std::erase_if(boundaries_, [](char32_t c) { return c < 0x80 || c >= 0x110000; });
  letters_.resize(boundaries_.size());
  for (int c = 0; c < 0x80; ++c)
    examples_.emplace_back(static_cast<unsigned char>(c), static_cast<char32_t>(c));

  // Rows differ in more than a pattern can see.
  std::map<std::tuple<std::size_t, int, int>, unsigned char> known;
  const auto runs = property_runs();
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const char32_t end = i + 1 < runs.size() ? runs[i + 1].first : 0x110000;
    char32_t c = std::max<char32_t>(runs[i].first, 0x80);
    while (c < end) {
      const auto next = std::upper_bound(boundaries_.begin(), boundaries_.end(), c);
      const auto interval = static_cast<std::size_t>(next - boundaries_.begin()) - 1;
      const PropertyRow& row = property_rows()[runs[i].row];
      const auto key = std::tuple(interval, int{row.category}, row.flags & (kRegexSpace | kRegexWord));
      const auto [found, fresh] = known.try_emplace(key, static_cast<unsigned char>(examples_.size()));
      if (fresh) {
        if (examples_.size() == 256) {
          fail<Unsupported>(
              {.op = "tokenizer.load", .what = "a pattern that names too many non-ASCII characters"});
        }
        examples_.emplace_back(found->second, c);
      }
      letters_[interval][runs[i].row] = found->second;
      c = next == boundaries_.end() ? end : std::min(end, *next);
    }
  }
}

unsigned char Alphabet::letter(char32_t c) const {
  if (c < 0x80) return static_cast<unsigned char>(c);
  const auto next = boundaries_.size() == 1 ? boundaries_.end()
                                            : std::upper_bound(boundaries_.begin(), boundaries_.end(), c);
  return letters_[static_cast<std::size_t>(next - boundaries_.begin()) - 1][property_row(c)];
}

std::string Alphabet::spell(std::string_view text) const {
  std::string result;
  result.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) result += static_cast<char>(letter(next_code_point(text, at)));
  return result;
}

}  // namespace modicum::text
