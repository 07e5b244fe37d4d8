// SPDX-License-Identifier: Apache-2.0
#include "unicode.hpp"

#include <cstring>
#include <iterator>
#include <memory>

namespace modicum::text {
namespace {

#include "unicode_data.inc"

constexpr char32_t kLimit = 0x110000;

/// One byte for each code point: a table of 1.1 MB beats a search in the inner loops.
const std::uint8_t* row_table() {
  static const auto table = [] {
    auto rows = std::make_unique<std::uint8_t[]>(kLimit);
    for (std::size_t i = 0; i < std::size(kRuns); ++i) {
      const std::uint32_t end = i + 1 < std::size(kRuns) ? kRuns[i + 1].first : kLimit;
      std::memset(rows.get() + kRuns[i].first, kRuns[i].row, end - kRuns[i].first);
    }
    return rows;
  }();
  return table.get();
}

/// Bytes of a UTF-8 sequence by its lead byte, with the range of the second byte; 0 for a byte that leads
/// none.
struct Lead {
  int length;
  unsigned char low, high;
};

Lead lead_of(unsigned char byte) {
  if (byte < 0x80) return {1, 0, 0};
  if (byte < 0xC2 || byte > 0xF4) return {0, 0, 0};
  if (byte < 0xE0) return {2, 0x80, 0xBF};
  if (byte < 0xF0)
    return {3, static_cast<unsigned char>(byte == 0xE0 ? 0xA0 : 0x80),
            static_cast<unsigned char>(byte == 0xED ? 0x9F : 0xBF)};
  return {4, static_cast<unsigned char>(byte == 0xF0 ? 0x90 : 0x80),
          static_cast<unsigned char>(byte == 0xF4 ? 0x8F : 0xBF)};
}

/// How many bytes at `at` belong together: a whole character, or the longest beginning of one (`whole`
/// false).
std::size_t sequence_length(std::string_view bytes, std::size_t at, bool& whole) {
  const Lead lead = lead_of(static_cast<unsigned char>(bytes[at]));
  whole = lead.length == 1;
  if (lead.length <= 1) return 1;
  std::size_t n = 1;
  for (; n < static_cast<std::size_t>(lead.length) && at + n < bytes.size(); ++n) {
    const auto byte = static_cast<unsigned char>(bytes[at + n]);
    if (byte < (n == 1 ? lead.low : 0x80) || byte > (n == 1 ? lead.high : 0xBF)) return n;
  }
  whole = n == static_cast<std::size_t>(lead.length);
  return n;
}

}  // namespace

std::span<const PropertyRun> property_runs() {
  return kRuns;
}
std::span<const PropertyRow> property_rows() {
  return kRows;
}
std::uint8_t property_row(char32_t code_point) {
  return row_table()[code_point];
}
const PropertyRow& properties(char32_t code_point) {
  return kRows[property_row(code_point)];
}

char32_t last_code_point(std::string_view text) {
  std::size_t at = text.size() - 1;
  while (at > 0 && is_continuation(text[at])) --at;
  return next_code_point(text, at);
}

void append_utf8(std::string& out, char32_t c) {
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += static_cast<char>(0xC0 | c >> 6);
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    out += static_cast<char>(0xE0 | c >> 12);
    out += static_cast<char>(0x80 | (c >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else {
    out += static_cast<char>(0xF0 | c >> 18);
    out += static_cast<char>(0x80 | (c >> 12 & 0x3F));
    out += static_cast<char>(0x80 | (c >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  }
}

std::vector<char32_t> to_code_points(std::string_view text) {
  std::vector<char32_t> result;
  result.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) result.push_back(next_code_point(text, at));
  return result;
}

std::size_t count_code_points(std::string_view text) {
  std::size_t n = 0;
  for (const char byte : text) n += !is_continuation(byte);
  return n;
}

bool is_ascii(std::string_view text) {
  std::size_t at = 0;
  for (; at + 8 <= text.size(); at += 8) {
    std::uint64_t word;
    std::memcpy(&word, text.data() + at, 8);
    if (word & 0x8080808080808080u) return false;
  }
  for (; at < text.size(); ++at) {
    if (static_cast<unsigned char>(text[at]) >= 0x80) return false;
  }
  return true;
}

std::size_t find_invalid_utf8(std::string_view text) {
  for (std::size_t at = 0; at < text.size();) {
    if (static_cast<unsigned char>(text[at]) < 0x80) {
      ++at;
      continue;
    }
    bool whole = false;
    const std::size_t n = sequence_length(text, at, whole);
    if (!whole) return at;
    at += n;
  }
  return std::string_view::npos;
}

std::size_t append_lossy(std::string& out, std::string_view bytes) {
  for (std::size_t at = 0; at < bytes.size();) {
    bool whole = false;
    const std::size_t n = sequence_length(bytes, at, whole);
    if (whole) {
      out.append(bytes.substr(at, n));
    } else if (at + n == bytes.size() && lead_of(static_cast<unsigned char>(bytes[at])).length > 1) {
      return n;
    } else {
      out.append(kReplacement);
    }
    at += n;
  }
  return 0;
}

}  // namespace modicum::text
