// SPDX-License-Identifier: Apache-2.0
// A lexicon's file: safetensors, data aligned to 4096 bytes, metadata `format` ("modicum.lexicon"), `version`
// ("1"), `tokenizer` (XXH3-128 of tokenizer.json, or empty) and `prefix`. Tensors, in order, as
// `LexiconArrays` describes them:
//
//   ends       U64 [ceil(nodes / 64)]
//   first      U32 [nodes + 1]
//   tokens     I32 [nodes − 1]
//   positions  U32 [entries that the lexicon was built from]
//   begins     U32 [entries + 1], or [0] where no entry was repeated
//   seal       U8 [32]   hash128_hex of the hash128_hex of the header (all before the data), `ends`, `first`,
//                        `tokens`, `positions` and `begins`, one after the other
#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <utility>

#include <modicum/base/error.hpp>
#include <modicum/base/hash.hpp>
#include <modicum/io/safetensors.hpp>

#include "../base/quote.hpp"
#include "lexicon_data.hpp"

namespace modicum {
namespace {

constexpr std::string_view kOp = "lexicon.open";
constexpr std::string_view kFormat = "modicum.lexicon";
constexpr std::string_view kVersion = "1";
constexpr std::size_t kPage = 4096;
constexpr std::array<const char*, 5> kArrays{"ends", "first", "tokens", "positions", "begins"};

static_assert(std::endian::native == std::endian::little, "the file is used where it lies");

std::array<std::span<const std::byte>, 5> bytes_of(const LexiconArrays& a) {
  return {std::as_bytes(a.ends), std::as_bytes(a.first), std::as_bytes(a.tokens), std::as_bytes(a.positions),
          std::as_bytes(a.begins)};
}

std::string seal_of(std::span<const std::byte> header,
                    const std::array<std::span<const std::byte>, 5>& arrays) {
  std::string sums = hash128_hex(header);
  for (const auto& bytes : arrays) sums += hash128_hex(bytes);
  return hash128_hex(sums);
}

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

/// A file's bytes and what they are called in errors.
struct Source {
  std::span<const std::byte> file;
  const SafetensorsHeader& header;
  std::string name;

  [[noreturn]] void fail_format(const std::string& what, std::string expected, std::string got) const {
    fail<FormatError>({.op = kOp,
                       .what = name + ": " + what,
                       .expected = std::move(expected),
                       .got = std::move(got),
                       .todo = "build it again"});
  }

  std::string metadata(const char* key) const {
    const auto at = header.metadata.find(key);
    return at == header.metadata.end() ? std::string() : at->second;
  }

  std::span<const std::byte> tensor(const char* key, std::string_view dtype) const {
    const auto at = header.tensors.find(key);
    if (at == header.tensors.end()) fail_format("tensors", "one named " + quote(key), "none");
    const TensorInfo& info = at->second;
    if (info.dtype != dtype || info.shape.size() != 1) {
      fail_format("tensor " + quote(key), "a vector of " + std::string(dtype),
                  info.dtype + " in " + std::to_string(info.shape.size()) + " dimensions");
    }
    return file.subspan(header.data_begin + info.begin, info.bytes());
  }

  template <class T>
  std::span<const T> array(const char* key, std::string_view dtype) const {
    const auto bytes = tensor(key, dtype);
    if (reinterpret_cast<std::uintptr_t>(bytes.data()) % alignof(T) != 0) {
      fail_format("tensor " + quote(key), "data that is aligned", "an odd offset");
    }
    return {reinterpret_cast<const T*>(bytes.data()), bytes.size() / sizeof(T)};
  }
};

void check_kind(const Source& source) {
  if (source.metadata("format") != kFormat) {
    fail<FormatError>({.op = kOp,
                       .what = source.name,
                       .expected = "a modicum lexicon",
                       .got = "a safetensors file of another kind"});
  }
  if (source.metadata("version") != kVersion) {
    fail<Unsupported>({.op = kOp,
                       .what = source.name + ": version",
                       .expected = std::string(kVersion),
                       .got = quote(source.metadata("version")),
                       .todo = "build it again with this version of modicum"});
  }
}

void check_seal(const Source& source, const LexiconArrays& arrays) {
  const std::string expected = seal_of(source.file.first(source.header.data_begin), bytes_of(arrays));
  if (std::ranges::equal(source.tensor("seal", "U8"), bytes_of(expected))) return;
  fail<Corrupt>({.op = kOp,
                 .what = source.name,
                 .expected = "bytes as they were written",
                 .got = "others (the checksum differs)",
                 .todo = "build it again, or restore it from a copy"});
}

void check_tokenizer(const Source& source, std::string_view expected) {
  const std::string got = source.metadata("tokenizer");
  if (expected.empty() || got == expected) return;
  fail<FingerprintMismatch>({.op = kOp,
                             .what = source.name + ": tokenizer",
                             .expected = std::string(expected),
                             .got = got.empty() ? "none: its entries came as token ids" : got,
                             .todo = "build it with the tokenizer of the model that is to write it"});
}

/// Whether no edge leads back. Where every edge e of a node n is at n or beyond, its child e + 1 comes after
/// n: walks down end, and so do walks up.
bool lead_on(std::span<const std::uint32_t> first) {
  std::uint32_t back = 0;  // not a bool: so the loop runs in vectors
  for (std::size_t n = 0; n + 1 < first.size(); ++n) {
    back |= static_cast<std::uint32_t>(first[n] > first[n + 1]) |
            static_cast<std::uint32_t>(first[n] < static_cast<std::uint32_t>(n));
  }
  return back == 0;
}

/// Whether the tokens of each node ascend from 0 or more: as many places where a token is not above the one
/// before it as there are such places between nodes. Counting has no branches to mispredict.
bool ascend(const LexiconArrays& a) {
  std::uint32_t least = 0, anywhere = 0, between = 0;
  const std::size_t count = a.tokens.size();
  for (const TokenId token : a.tokens) least |= static_cast<std::uint32_t>(token) >> 31;
  for (std::size_t e = 1; e < count; ++e) anywhere += a.tokens[e - 1] >= a.tokens[e];
  for (std::size_t n = 1; n < a.nodes() && a.first[n] < count; ++n) {
    const std::size_t begin = a.first[n];  // at least n
    between += static_cast<std::uint32_t>(begin < a.first[n + 1]) &
               static_cast<std::uint32_t>(a.tokens[begin - 1] >= a.tokens[begin]);
  }
  return least == 0 && anywhere == between;
}

/// Whether an entry ends in each node without children, none in the root, and none beyond the nodes.
bool end_where_they_must(const LexiconArrays& a) {
  bool right = (a.ends[0] & 1u) == 0;
  for (std::size_t word = 0; word < a.ends.size(); ++word) {
    const std::size_t begin = word * 64, count = std::min<std::size_t>(64, a.nodes() - begin);
    std::uint64_t leaves = 0;
    for (std::size_t i = 0; i < count; ++i) {
      leaves |= static_cast<std::uint64_t>(a.first[begin + i] == a.first[begin + i + 1]) << i;
    }
    const std::uint64_t nodes = ~std::uint64_t{0} >> (64 - count);
    right &= (leaves & ~a.ends[word]) == 0 && (a.ends[word] & ~nodes) == 0;
  }
  return right;
}

/// What is wrong with the trie, or nullptr.
const char* wrong_nodes(const LexiconArrays& a) {
  if (a.first.front() != 0 || a.first.back() != a.tokens.size()) return "edges that begin or end elsewhere";
  if (!lead_on(a.first)) return "edges that lead back";
  if (!ascend(a)) return "tokens that are negative or out of order";
  return end_where_they_must(a) ? nullptr : "ends where there are no entries, or none where one is";
}

/// What is wrong with the positions, or nullptr.
const char* wrong_positions(const LexiconArrays& a) {
  std::size_t entries = 0;
  for (const std::uint64_t word : a.ends) entries += static_cast<std::size_t>(std::popcount(word));
  const std::size_t count = a.positions.size();
  std::uint32_t largest = 0;
  for (const std::uint32_t position : a.positions) largest = std::max(largest, position);
  if (count < entries || largest >= count) return "positions beyond their number";
  if (a.begins.empty()) return count == entries ? nullptr : "no list of repeated entries";
  if (a.begins.size() != entries + 1 || a.begins.front() != 0 || a.begins.back() != count) {
    return "a list of repeated entries that does not cover them";
  }
  const bool ascending = std::ranges::adjacent_find(a.begins, std::ranges::greater_equal()) == a.begins.end();
  return ascending ? nullptr : "an entry without a position";
}

/// The file's arrays, which any walk may trust.
LexiconArrays checked_arrays(const Source& source) {
  const LexiconArrays arrays{
      source.array<std::uint64_t>("ends", "U64"), source.array<std::uint32_t>("first", "U32"),
      source.array<TokenId>("tokens", "I32"), source.array<std::uint32_t>("positions", "U32"),
      source.array<std::uint32_t>("begins", "U32")};
  check_seal(source, arrays);
  const std::size_t nodes = arrays.tokens.size() + 1;
  if (nodes < 2 || arrays.first.size() != nodes + 1 || arrays.ends.size() != (nodes + 63) / 64) {
    source.fail_format("arrays", "the sizes of one trie", "others");
  }
  const char* wrong = wrong_nodes(arrays);
  if (wrong == nullptr) wrong = wrong_positions(arrays);  // which needs an entry to be there
  if (wrong != nullptr) source.fail_format("arrays", "a trie in level order", wrong);
  return arrays;
}

std::vector<TensorSpec> layout(const LexiconArrays& a) {
  return {{kArrays[0], "U64", {a.ends.size()}},   {kArrays[1], "U32", {a.first.size()}},
          {kArrays[2], "I32", {a.tokens.size()}}, {kArrays[3], "U32", {a.positions.size()}},
          {kArrays[4], "U32", {a.begins.size()}}, {"seal", "U8", {32}}};
}

}  // namespace

Lexicon Lexicon::open(const std::filesystem::path& path, std::string_view tokenizer) {
  const SafetensorsFile file = SafetensorsFile::open(path, Guard::yes);
  const Source source{file.file().bytes(), file.header(), quote(path.string())};
  check_kind(source);
  const LexiconArrays arrays = checked_arrays(source);
  check_tokenizer(source, tokenizer);
  return Lexicon(std::make_shared<const Data>(arrays, source.metadata("tokenizer"), source.metadata("prefix"),
                                              nullptr, file.file()));
}

Lexicon Lexicon::parse(std::span<const std::byte> file, std::string_view name, std::string_view tokenizer) {
  const auto copy = std::make_shared<const std::vector<std::byte>>(file.begin(), file.end());
  const SafetensorsHeader header = parse_safetensors(*copy, name);
  const Source source{*copy, header, quote(name)};
  check_kind(source);
  const LexiconArrays arrays = checked_arrays(source);
  check_tokenizer(source, tokenizer);
  return Lexicon(
      std::make_shared<const Data>(arrays, source.metadata("tokenizer"), source.metadata("prefix"), copy));
}

void Lexicon::save(const std::filesystem::path& path) const {
  const LexiconArrays& arrays = data_->arrays;
  SafetensorsWriter writer(path, layout(arrays),
                           {{"format", std::string(kFormat)},
                            {"version", std::string(kVersion)},
                            {"tokenizer", data_->tokenizer},
                            {"prefix", data_->prefix}},
                           kPage, 0600);
  const auto parts = bytes_of(arrays);
  for (const auto& bytes : parts) writer.append(bytes);
  const std::string seal = seal_of(bytes_of(writer.header()), parts);
  writer.append(bytes_of(seal));
  // Over its own mapping, too: the old file stays as long as it is mapped.
  data_->check_intact();
  writer.commit();
}

}  // namespace modicum
