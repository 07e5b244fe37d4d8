// SPDX-License-Identifier: Apache-2.0
// Normal forms (Unicode Standard Annex 15) and lower case, from tables that hold the full decompositions.
#include <algorithm>
#include <iterator>
#include <unordered_map>
#include <utility>

#include "unicode.hpp"

namespace modicum::text {
namespace {

struct Composition {
  char32_t first, second, composite;
};

#include "unicode_forms.inc"

// Hangul syllables are composed by arithmetic.
constexpr char32_t kSyllables = 0xAC00, kLeads = 0x1100, kVowels = 0x1161, kTails = 0x11A7;
constexpr char32_t kLeadCount = 19, kVowelCount = 21, kTailCount = 28;
constexpr char32_t kSyllableCount = kLeadCount * kVowelCount * kTailCount;

/// Rows of "code point, length, code points …".
class Sequences {
 public:
  explicit Sequences(std::span<const char32_t> rows) {
    for (std::size_t at = 0; at < rows.size(); at += 2 + rows[at + 1]) {
      map_.emplace(rows[at], rows.subspan(at + 2, rows[at + 1]));
    }
  }
  std::span<const char32_t> find(char32_t c) const {
    const auto found = map_.find(c);
    return found == map_.end() ? std::span<const char32_t>() : found->second;
  }

 private:
  std::unordered_map<char32_t, std::span<const char32_t>> map_;
};

const Sequences& canonical() {
  static const Sequences table(kCanonical);
  return table;
}

const Sequences& compatible() {
  static const Sequences table(kCompatible);
  return table;
}

std::uint64_t pair_key(char32_t first, char32_t second) {
  return std::uint64_t{first} << 32 | second;
}

/// The composite of two code points, or 0.
char32_t compose(char32_t first, char32_t second) {
  static const auto table = [] {
    std::unordered_map<std::uint64_t, char32_t> map;
    for (const Composition& c : kCompositions) map.emplace(pair_key(c.first, c.second), c.composite);
    return map;
  }();
  if (first - kLeads < kLeadCount && second - kVowels < kVowelCount) {
    return kSyllables + ((first - kLeads) * kVowelCount + (second - kVowels)) * kTailCount;
  }
  if (first - kSyllables < kSyllableCount && (first - kSyllables) % kTailCount == 0 && second > kTails &&
      second - kTails < kTailCount) {
    return first + (second - kTails);
  }
  const auto found = table.find(pair_key(first, second));
  return found == table.end() ? 0 : found->second;
}

std::uint8_t combining_class(char32_t c) {
  return properties(c).combining_class;
}

void append_decomposed(std::vector<Change>& out, char32_t c, bool compatibly) {
  if (c - kSyllables < kSyllableCount) {
    const char32_t index = c - kSyllables;
    out.push_back({kLeads + index / (kVowelCount * kTailCount), 0});
    out.push_back({kVowels + index / kTailCount % kVowelCount, 1});
    if (index % kTailCount != 0) out.push_back({kTails + index % kTailCount, 1});
    return;
  }
  std::span<const char32_t> parts = compatibly ? compatible().find(c) : std::span<const char32_t>();
  if (parts.empty()) parts = canonical().find(c);
  if (parts.empty()) {
    out.push_back({c, 0});
    return;
  }
  for (std::size_t i = 0; i < parts.size(); ++i) out.push_back({parts[i], i == 0 ? 0 : 1});
}

/// Sorts each run of marks by combining class, keeping the order of equals.
void order_marks(std::vector<Change>& changes) {
  const auto is_starter = [](const Change& c) { return combining_class(c.code_point) == 0; };
  const auto by_class = [](const Change& a, const Change& b) {
    return combining_class(a.code_point) < combining_class(b.code_point);
  };
  for (auto begin = changes.begin(); begin != changes.end();) {
    begin = std::find_if_not(begin, changes.end(), is_starter);
    const auto end = std::find_if(begin, changes.end(), is_starter);
    std::stable_sort(begin, end, by_class);
    begin = end;
  }
}

/// Joins each starter with the marks behind it that are not blocked. What it swallows is subtracted from its
/// change, as `tokenizers` counts.
std::vector<Change> composed(const std::vector<Change>& parts) {
  std::vector<Change> out;
  out.reserve(parts.size());
  constexpr std::size_t kNone = static_cast<std::size_t>(-1);
  std::size_t starter = kNone;
  int last_class = -1;  // of the mark kept between the starter and here; -1 where there is none
  for (const Change& part : parts) {
    const int own_class = combining_class(part.code_point);
    if (starter != kNone && last_class < own_class) {
      if (const char32_t joined = compose(out[starter].code_point, part.code_point)) {
        out[starter] = {joined, out[starter].change + part.change - 1};
        continue;
      }
    }
    if (own_class == 0) {
      starter = out.size();
      last_class = -1;
    } else if (starter != kNone) {
      last_class = own_class;
    }
    out.push_back(part);
  }
  return out;
}

/// Code points that NFC may change or join to what stands before them.
bool may_change(char32_t c) {
  static const auto table = [] {
    std::vector<bool> flags(0x110000);
    for (std::size_t at = 0; at < std::size(kCanonical); at += 2 + kCanonical[at + 1]) {
      flags[kCanonical[at]] = true;
    }
    for (const Composition& composition : kCompositions) {
      flags[composition.composite] = false;
    }
    for (const Composition& composition : kCompositions) flags[composition.second] = true;
    for (char32_t v = 0; v < kVowelCount; ++v) flags[kVowels + v] = true;
    for (char32_t t = 1; t < kTailCount; ++t) flags[kTails + t] = true;
    return flags;
  }();
  return table[c];
}

}  // namespace

std::span<const char32_t> lowercase(char32_t code_point) {
  static const Sequences table(kLowercase);
  return table.find(code_point);
}

std::vector<Change> normalize(std::string_view text, NormalForm form) {
  const bool compatibly = form == NormalForm::nfkc || form == NormalForm::nfkd;
  std::vector<Change> changes;
  changes.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    append_decomposed(changes, next_code_point(text, at), compatibly);
  }
  order_marks(changes);
  return form == NormalForm::nfc || form == NormalForm::nfkc ? composed(changes) : changes;
}

bool is_surely_nfc(std::string_view text) {
  std::uint8_t last_class = 0;
  for (std::size_t at = 0; at < text.size();) {
    if (static_cast<unsigned char>(text[at]) < 0x80) {
      ++at;
      last_class = 0;
      continue;
    }
    const char32_t c = next_code_point(text, at);
    const std::uint8_t own_class = combining_class(c);
    if (may_change(c) || (own_class != 0 && own_class < last_class)) return false;
    last_class = own_class;
  }
  return true;
}

}  // namespace modicum::text
