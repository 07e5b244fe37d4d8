// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include <sys/stat.h>

#include <modicum/base/error.hpp>
#include <modicum/base/hash.hpp>
#include <modicum/io/safetensors.hpp>
#include <modicum/search/lexicon.hpp>

#include "base/temporary_directory.hpp"
#include "support/byte_tokenizer.hpp"
#include "support/catch.hpp"

namespace {

using modicum::AllowedTokens;
using modicum::Lexicon;
using modicum::LexiconBuilder;
using modicum::TokenId;
using Entry = std::vector<TokenId>;
using Entries = std::vector<Entry>;

/// What a lexicon must be: its entries in its order, and where each stood.
struct ByLength {
  bool operator()(const Entry& a, const Entry& b) const {
    return a.size() != b.size() ? a.size() < b.size() : a < b;
  }
};
using Oracle = std::map<Entry, std::vector<std::uint32_t>, ByLength>;

Oracle oracle_of(const Entries& entries) {
  Oracle oracle;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    oracle[entries[i]].push_back(static_cast<std::uint32_t>(i));
  }
  return oracle;
}

/// The token that may follow each beginning of an entry.
std::map<Entry, std::set<TokenId>> followers(const Oracle& oracle) {
  std::map<Entry, std::set<TokenId>> result;
  for (const auto& [entry, positions] : oracle) {
    for (std::size_t n = 0; n < entry.size(); ++n) {
      result[Entry(entry.begin(), entry.begin() + static_cast<std::ptrdiff_t>(n))].insert(entry[n]);
    }
  }
  return result;
}

modicum::Constraint::State walk(const Lexicon& lexicon, const Entry& ids) {
  auto state = lexicon.root();
  for (const TokenId id : ids) state = lexicon.advance(state, id);
  return state;
}

void check_walks(const Lexicon& lexicon, const Oracle& oracle) {
  modicum::AllowedScratch scratch;
  auto expected = followers(oracle);
  for (const auto& [entry, positions] : oracle) expected[entry];  // ends, which nothing may follow
  for (const auto& [beginning, tokens] : expected) {
    const auto state = walk(lexicon, beginning);
    const AllowedTokens allowed = lexicon.allowed(state, scratch);
    REQUIRE(allowed.kind == AllowedTokens::Kind::only);
    REQUIRE(std::ranges::equal(allowed.tokens, tokens));
    REQUIRE(allowed.may_end == oracle.contains(beginning));
    REQUIRE(lexicon.index(state).has_value() == allowed.may_end);
  }
  REQUIRE(lexicon.nodes() == expected.size() + (expected.contains({}) ? 0 : 1));
}

void check_against(const Lexicon& lexicon, const Entries& entries) {
  const Oracle oracle = oracle_of(entries);
  REQUIRE(lexicon.size() == oracle.size());
  REQUIRE(lexicon.positions() == entries.size());
  std::size_t index = 0;
  for (const auto& [entry, positions] : oracle) {
    REQUIRE(lexicon.find(entry) == index);
    REQUIRE(lexicon.entry(index) == entry);
    REQUIRE(std::ranges::equal(lexicon.positions(index), positions));
    ++index;
  }
  check_walks(lexicon, oracle);
}

Entries random_entries(std::mt19937& random, std::size_t count, int vocabulary, std::size_t longest) {
  Entries entries(count);
  for (Entry& entry : entries) {
    entry.resize(1 + random() % longest);
    for (TokenId& id : entry) id = static_cast<TokenId>(random() % static_cast<unsigned>(vocabulary));
  }
  return entries;
}

Lexicon reopened(const Lexicon& lexicon, const TemporaryDirectory& folder) {
  lexicon.save(folder / "a.lexicon");
  return Lexicon::open(folder / "a.lexicon");
}

/// The bytes of a file under a seal that fits them: what a hostile writer can do.
std::string resealed(std::string file) {
  const auto bytes = std::as_bytes(std::span(std::as_const(file)));
  const auto header = modicum::parse_safetensors(bytes, "resealed");
  std::string sums = modicum::hash128_hex(bytes.first(header.data_begin));
  for (const char* name : {"ends", "first", "tokens", "positions", "begins"}) {
    const auto& info = header.tensors.find(name)->second;
    sums += modicum::hash128_hex(bytes.subspan(header.data_begin + info.begin, info.bytes()));
  }
  const std::string seal = modicum::hash128_hex(sums);
  const auto& info = header.tensors.find("seal")->second;
  return file.replace(header.data_begin + info.begin, seal.size(), seal);
}

Lexicon parsed(const std::string& file) {
  return Lexicon::parse(std::as_bytes(std::span(file)), "a file");
}

}  // namespace

TEST_CASE("a lexicon holds its entries and nothing else") {
  std::mt19937 random(1);
  for (const int vocabulary : {1, 2, 5, 100, 50000}) {
    for (const std::size_t count : {1u, 2u, 63u, 64u, 65u, 700u, 3000u}) {
      CAPTURE(vocabulary, count);
      const Entries entries = random_entries(random, count, vocabulary, 1 + random() % 12);
      check_against(Lexicon::build(entries), entries);
    }
  }
}

TEST_CASE("a lexicon finds no text that is not an entry") {
  std::mt19937 random(2);
  const Entries entries = random_entries(random, 500, 6, 5);
  const Oracle oracle = oracle_of(entries);
  const Lexicon lexicon = Lexicon::build(entries);
  for (const Entry& ids : random_entries(random, 5000, 7, 7)) {
    REQUIRE(lexicon.find(ids).has_value() == oracle.contains(ids));
  }
  CHECK_FALSE(lexicon.find({}));
  CHECK_FALSE(lexicon.find(Entry{-1}));
}

TEST_CASE("entries of every shape keep their index and their position") {
  SECTION("a single token") {
    check_against(Lexicon::build(Entries{{0}}), {{0}});
  }
  SECTION("a single long entry") {
    Entry entry(5000);
    for (std::size_t i = 0; i < entry.size(); ++i) entry[i] = static_cast<TokenId>(i % 7);
    const Lexicon lexicon = Lexicon::build(Entries{entry});
    CHECK(lexicon.entry(0) == entry);
    CHECK(lexicon.nodes() == 5001);
  }
  SECTION("prefixes of each other") {
    const Entries entries{{3, 1, 4}, {3}, {3, 1}, {3, 1, 4, 1, 5}};
    check_against(Lexicon::build(entries), entries);
  }
  SECTION("shared endings") {
    const Entries entries{{1, 9, 9}, {2, 9, 9}, {3, 9, 9}, {9, 9}, {9}};
    check_against(Lexicon::build(entries), entries);
  }
  SECTION("repeated entries") {
    const Entries entries{{7, 7}, {1}, {7, 7}, {1}, {7}, {7, 7}};
    const Lexicon lexicon = Lexicon::build(entries);
    check_against(lexicon, entries);
    CHECK(std::ranges::equal(lexicon.positions(*lexicon.find(Entry{7, 7})), Entry{0, 2, 5}));
  }
  SECTION("the largest token") {
    const Entries entries{{0x7fffffff, 0x7fffffff}, {0x7fffffff}, {5}};
    check_against(Lexicon::build(entries), entries);
    CHECK(Lexicon::build(entries).largest_token() == 0x7fffffff);
  }
}

TEST_CASE("a wide root is not copied") {
  Entries entries;
  for (TokenId id = 50000; id-- > 0;) entries.push_back({2 * id, id % 10});
  const Lexicon lexicon = Lexicon::build(entries);
  check_against(lexicon, entries);
  modicum::AllowedScratch scratch;
  const auto first = lexicon.allowed(lexicon.root(), scratch).tokens;
  CHECK(first.size() == 50000);
  CHECK(first.data() == lexicon.allowed(lexicon.root(), scratch).tokens.data());
  CHECK(scratch.tokens.empty());
}

TEST_CASE("entries that make no sense are refused") {
  CHECK_THROWS_AS(Lexicon::build({}), modicum::InvalidArgument);
  CHECK_THROWS_AS(Lexicon::build(Entries{{1}, {}}), modicum::InvalidArgument);
  CHECK_THROWS_AS(Lexicon::build(Entries{{1}, {2, -1}}), modicum::InvalidArgument);
  const Lexicon lexicon = Lexicon::build(Entries{{1, 2}, {1, 4}});
  modicum::AllowedScratch scratch;
  CHECK_THROWS_AS(lexicon.advance(lexicon.root(), 2), modicum::InvalidArgument);
  CHECK_THROWS_AS(lexicon.advance(walk(lexicon, {1, 2}), 2), modicum::InvalidArgument);
  CHECK_THROWS_AS(lexicon.allowed(lexicon.nodes(), scratch), modicum::InvalidArgument);
  CHECK_THROWS_AS(lexicon.advance(~0ull, 2), modicum::InvalidArgument);
  CHECK_THROWS_AS(lexicon.entry(2), modicum::InvalidArgument);
  CHECK_THROWS_AS(lexicon.positions(2), modicum::InvalidArgument);
}

TEST_CASE("texts are encoded with their prefix, on any number of threads") {
  const auto tokenizer = modicum::Tokenizer::parse(byte_tokenizer_json());
  std::vector<std::string> texts;
  for (int i = 0; i < 1000; ++i) texts.push_back("name " + std::to_string(i * 7919 % 1000));
  Entries entries;
  for (const std::string& text : texts) entries.emplace_back(tokenizer.encode(" " + text).ids);
  for (const std::size_t threads : {1u, 3u}) {
    modicum::ThreadPool pool(threads);
    LexiconBuilder builder(tokenizer, " ");
    builder.add(std::span(texts).first(300), pool);
    builder.add(std::span(texts).subspan(300), pool);
    const Lexicon lexicon = std::move(builder).finish();
    check_against(lexicon, entries);
    CHECK(lexicon.tokenizer() == tokenizer.fingerprint());
    CHECK(lexicon.prefix() == " ");
  }
}

TEST_CASE("a text that no lexicon can hold is refused by its position, and the others stay") {
  const auto tokenizer = modicum::Tokenizer::parse(byte_tokenizer_json());
  modicum::ThreadPool pool(1);
  LexiconBuilder builder(tokenizer);
  builder.add(std::vector<std::string>{"a", "b"}, pool);
  const auto message = [&](const std::string& text) {
    try {
      builder.add(std::vector<std::string>{"c", text}, pool);
    } catch (const modicum::InvalidArgument& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  for (const char* text : {"", "x<|end|>", "\xff"}) {
    CAPTURE(text);
    CHECK_THAT(message(text), Catch::Contains(" 3"));
    CHECK(builder.size() == 2);
  }
  CHECK(std::move(builder).finish().size() == 2);
  CHECK_THROWS_AS(LexiconBuilder(tokenizer, "<|user|>"), modicum::InvalidArgument);
  CHECK_THROWS_AS(LexiconBuilder(tokenizer, "\xff"), modicum::InvalidArgument);
  CHECK_THROWS_AS(LexiconBuilder().add(std::vector<std::string>{"a"}, pool), modicum::InvalidArgument);
}

TEST_CASE("a build reports its progress and stops when asked to") {
  std::mt19937 random(3);
  const Entries entries = random_entries(random, 200000, 50000, 4);
  std::vector<std::string> stages;
  Lexicon::build(entries, [&](std::string_view stage, std::uint64_t done, std::uint64_t total) {
    if (stages.empty() || stages.back() != stage) stages.emplace_back(stage);
    return done <= total;
  });
  CHECK(stages == std::vector<std::string>{"sort", "build"});
  for (const std::string stop : {"sort", "build"}) {
    const auto refuse = [&](std::string_view stage, std::uint64_t, std::uint64_t) { return stage != stop; };
    CHECK_THROWS_AS(Lexicon::build(entries, refuse), modicum::Cancelled);
  }
}

TEST_CASE("a lexicon that was saved is the same when it is opened, and mapped") {
  const TemporaryDirectory folder;
  std::mt19937 random(4);
  for (const std::size_t count : {1u, 64u, 5000u}) {
    const Entries entries = random_entries(random, count, 40, 6);
    const Lexicon lexicon = Lexicon::build(entries);
    const Lexicon opened = reopened(lexicon, folder);
    check_against(opened, entries);
    CHECK(opened.bytes() == lexicon.bytes());
    check_against(parsed(folder.read("a.lexicon")), entries);
    opened.save(folder / "b.lexicon");
    CHECK(folder.read("a.lexicon") == folder.read("b.lexicon"));
    opened.save(folder / "a.lexicon");  // over the file that it is mapped from
    check_against(opened, entries);
  }
  struct stat status{};
  REQUIRE(::stat((folder / "a.lexicon").c_str(), &status) == 0);
  CHECK((status.st_mode & 0777u) == 0600u);
}

TEST_CASE("a lexicon opens only with the tokenizer that made it") {
  const TemporaryDirectory folder;
  const auto tokenizer = modicum::Tokenizer::parse(byte_tokenizer_json());
  modicum::ThreadPool pool(1);
  LexiconBuilder builder(tokenizer, "\n");
  builder.add(std::vector<std::string>{"a", "b"}, pool);
  std::move(builder).finish().save(folder / "a.lexicon");
  const Lexicon opened = Lexicon::open(folder / "a.lexicon", tokenizer.fingerprint());
  CHECK(opened.tokenizer() == tokenizer.fingerprint());
  CHECK(opened.prefix() == "\n");
  CHECK(Lexicon::open(folder / "a.lexicon").size() == 2);
  const std::string other(32, '0');
  CHECK_THROWS_AS(Lexicon::open(folder / "a.lexicon", other), modicum::FingerprintMismatch);
  Lexicon::build(Entries{{1}}).save(folder / "ids.lexicon");
  CHECK_THROWS_AS(Lexicon::open(folder / "ids.lexicon", other), modicum::FingerprintMismatch);
}

TEST_CASE("files of other kinds are refused") {
  const TemporaryDirectory folder;
  CHECK_THROWS_AS(Lexicon::open(folder / "none"), modicum::IoError);
  CHECK_THROWS_AS(Lexicon::open(folder.write("empty", "")), modicum::FormatError);
  modicum::SafetensorsWriter writer(folder / "weights", {{"w", "F32", {1}}});
  writer.append(std::as_bytes(std::span<const float>(std::vector{1.0f})));
  writer.commit();
  CHECK_THROWS_AS(Lexicon::open(folder / "weights"), modicum::FormatError);
  Lexicon::build(Entries{{1}}).save(folder / "a.lexicon");
  std::string newer = folder.read("a.lexicon");
  newer.replace(newer.find(R"("version":"1")"), 13, R"("version":"2")");
  CHECK_THROWS_AS(parsed(resealed(newer)), modicum::Unsupported);
}

TEST_CASE("every changed byte and every cut of a saved lexicon is refused") {
  const TemporaryDirectory folder;
  Lexicon::build(Entries{{1, 2, 3}, {1, 2}, {4}, {4}, {5, 6}}).save(folder / "a.lexicon");
  const std::string file = folder.read("a.lexicon");
  for (std::size_t at = 0; at < file.size(); ++at) {
    for (const int flip : {1, 0x80}) {
      std::string changed = file;
      changed[at] = static_cast<char>(changed[at] ^ flip);
      CAPTURE(at, flip);
      REQUIRE_THROWS_AS(parsed(changed), modicum::Error);
    }
  }
  for (std::size_t size = 0; size < file.size(); ++size) {
    REQUIRE_THROWS_AS(parsed(file.substr(0, size)), modicum::FormatError);
  }
  CHECK_THROWS_AS(parsed(file + "x"), modicum::FormatError);
}

TEST_CASE("a file with a good seal over a bad trie is refused, or is a trie") {
  const TemporaryDirectory folder;
  std::mt19937 random(5);
  const Entries entries = random_entries(random, 40, 4, 5);
  Lexicon::build(entries).save(folder / "a.lexicon");
  const std::string file = folder.read("a.lexicon");
  const auto header = modicum::parse_safetensors(std::as_bytes(std::span(file)), "a file");
  const std::size_t begin = header.data_begin, end = file.size() - 32;
  std::size_t refused = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string changed = file;
    const std::size_t at = begin + random() % (end - begin);
    changed[at] =
        static_cast<char>(random() % 4 == 0 ? random() : changed[at] + static_cast<int>(random() % 5) - 2);
    try {
      const Lexicon lexicon = parsed(resealed(changed));
      for (std::size_t i = 0; i < lexicon.size(); ++i) {
        REQUIRE(lexicon.find(lexicon.entry(i)) == i);
        REQUIRE(std::ranges::max(lexicon.positions(i)) < lexicon.positions());
      }
    } catch (const modicum::FormatError&) {
      ++refused;
    }
  }
  CHECK(refused > 5000);
}

TEST_CASE("a file that is cut or written to while it is mapped answers with Corrupt") {
  const TemporaryDirectory folder;
  std::mt19937 random(6);
  const Entries entries = random_entries(random, 20000, 50000, 6);
  const Lexicon lexicon = reopened(Lexicon::build(entries), folder);
  modicum::AllowedScratch scratch;
  const auto state = lexicon.advance(lexicon.root(), entries[0][0]);
  std::filesystem::resize_file(folder / "a.lexicon", 4096);
  CHECK_THROWS_AS(lexicon.root(), modicum::Corrupt);
  CHECK_THROWS_AS(lexicon.allowed(state, scratch), modicum::Corrupt);
  CHECK_THROWS_AS(lexicon.advance(state, 1), modicum::Corrupt);
  CHECK_THROWS_AS(lexicon.entry(5), modicum::Corrupt);
  CHECK_THROWS_AS(lexicon.find(entries[0]), modicum::Corrupt);
  CHECK_THROWS_AS(lexicon.save(folder / "b.lexicon"), modicum::Corrupt);
}

TEST_CASE("a file that is replaced by renaming stays as it was for who has it open") {
  const TemporaryDirectory folder;
  const Entries entries{{1, 2}, {3}};
  const Lexicon lexicon = reopened(Lexicon::build(entries), folder);
  Lexicon::build(Entries{{9}}).save(folder / "a.lexicon");
  check_against(lexicon, entries);
}

TEST_CASE("threads share a lexicon") {
  std::mt19937 random(7);
  const Entries entries = random_entries(random, 2000, 50, 5);
  const Lexicon lexicon = Lexicon::build(entries);
  std::vector<std::thread> threads;
  std::vector<std::size_t> found(4);
  for (std::size_t t = 0; t < found.size(); ++t) {
    threads.emplace_back([&, t] {
      for (const Entry& entry : entries) found[t] += lexicon.index(walk(lexicon, entry)).has_value();
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(found == std::vector<std::size_t>(4, entries.size()));
}
