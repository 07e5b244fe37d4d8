// SPDX-License-Identifier: Apache-2.0
// A lexicon's file is refused with FormatError (Corrupt is one) or Unsupported, or every walk down its trie
// ends in an entry, every entry is found again, and every position is one. The input is tried as it is, and
// under a seal that fits it: what somebody could write who means harm.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include <modicum/base/error.hpp>
#include <modicum/base/hash.hpp>
#include <modicum/io/safetensors.hpp>
#include <modicum/search/lexicon.hpp>

namespace {

void check(bool holds) {
  if (!holds) std::abort();
}

/// Every node is reached once, in a number of steps that the number of nodes bounds; how many end an entry.
std::size_t count_entries(const modicum::Lexicon& lexicon) {
  modicum::AllowedScratch scratch;
  std::vector<modicum::Constraint::State> open{lexicon.root()};
  std::size_t visited = 0, entries = 0;
  while (!open.empty()) {
    const auto state = open.back();
    open.pop_back();
    check(++visited <= lexicon.nodes());
    const auto allowed = lexicon.allowed(state, scratch);
    check(allowed.may_end || !allowed.tokens.empty());
    check(allowed.tokens.empty() ||
          (allowed.tokens.front() >= 0 && allowed.tokens.back() <= lexicon.largest_token()));
    check(std::ranges::adjacent_find(allowed.tokens, std::ranges::greater_equal()) == allowed.tokens.end());
    check(lexicon.index(state).has_value() == allowed.may_end);
    entries += allowed.may_end;
    for (const modicum::TokenId token : allowed.tokens) open.push_back(lexicon.advance(state, token));
  }
  check(visited == lexicon.nodes());
  return entries;
}

void check_lexicon(const modicum::Lexicon& lexicon) {
  check(lexicon.size() > 0 && count_entries(lexicon) == lexicon.size());
  std::size_t positions = 0;
  for (std::size_t i = 0; i < lexicon.size(); ++i) {
    const auto ids = lexicon.entry(i);
    check(!ids.empty() && lexicon.find(ids) == i);
    const auto where = lexicon.positions(i);
    check(!where.empty() && std::ranges::max(where) < lexicon.positions());
    positions += where.size();
  }
  check(positions == lexicon.positions());
}

void parse(const std::string& file) {
  try {
    check_lexicon(modicum::Lexicon::parse(std::as_bytes(std::span(file)), "fuzz"));
  } catch (const modicum::FormatError&) {
  } catch (const modicum::Unsupported&) {
  }
}

/// As the format describes the seal. Leaves alone what has no place for one.
void reseal(std::string& file) {
  const std::string before = file;
  const auto bytes = std::as_bytes(std::span(before));
  const auto header = modicum::parse_safetensors(bytes, "fuzz");
  std::string sums = modicum::hash128_hex(bytes.first(header.data_begin));
  for (const char* name : {"ends", "first", "tokens", "positions", "begins"}) {
    const auto at = header.tensors.find(name);
    if (at == header.tensors.end()) return;
    const auto& info = at->second;
    sums += modicum::hash128_hex(bytes.subspan(header.data_begin + info.begin, info.bytes()));
  }
  const auto seal = header.tensors.find("seal");
  if (seal == header.tensors.end() || seal->second.bytes() != 32) return;
  file.replace(header.data_begin + seal->second.begin, 32, modicum::hash128_hex(sums));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string file(reinterpret_cast<const char*>(data), size);
  parse(file);
  try {
    reseal(file);
  } catch (const modicum::FormatError&) {
    return 0;
  }
  parse(file);
  return 0;
}
