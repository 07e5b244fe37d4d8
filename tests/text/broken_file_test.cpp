// SPDX-License-Identifier: Apache-2.0
#include <filesystem>
#include <fstream>

#include <modicum/base/error.hpp>

#include "support/catch.hpp"
#include "text/tokenizer_fixture.hpp"

TEST_CASE("what is no tokenizer.json is refused") {
  for (const std::string& text :
       {std::string(), std::string("{"), std::string("[]"), std::string("{}"), std::string("null"),
        std::string("{\"model\":{}}\0x", 15), std::string("{\"model\":\"\xff\"}"), std::string(100000, '['),
        "{\"model\":" + std::string(5000, '[') + std::string(5000, ']') + "}"}) {
    CHECK_THROWS_AS(Tokenizer::parse(text), FormatError);
  }
}

TEST_CASE("ids must be numbers of their own below 2^31") {
  for (const char* vocabulary :
       {R"("a":-1)", R"("a":1.5)", R"("a":"1")", R"("a":null)", R"("a":[1])", R"("a":{})",
        R"("a":2147483648)", R"("a":99999999999999999999)", R"("a":1,"b":1)"}) {
    CAPTURE(vocabulary);
    CHECK_THROWS_AS(make({.vocabulary = vocabulary, .merges = ""}), FormatError);
  }
  CHECK(make({.vocabulary = R"("a":2147483647)", .merges = ""}).encode("a").ids == Ids{2147483647});
  CHECK(make({.vocabulary = R"("a":1,"a":2)", .merges = ""}).encode("a").ids == Ids{2});
}

TEST_CASE("merges must name tokens") {
  for (const char* merges : {R"(["a","x"])", R"(["x","a"])", R"(["a","c"])", R"(["a"])", R"(["a","b","c"])",
                             "1", R"([1,2])", R"([["a","b"]])", R"({"a":"b"})", R"("ab")"}) {
    CAPTURE(merges);
    CHECK_THROWS_AS(make({.merges = merges}), FormatError);
  }
}

TEST_CASE("components must have the fields that they need") {
  CHECK_THROWS_AS(make({.normalizer = "1"}), FormatError);
  CHECK_THROWS_AS(make({.normalizer = R"({"type":1})"}), FormatError);
  CHECK_THROWS_AS(make({.normalizer = R"({"type":"Replace","pattern":{},"content":""})"}), FormatError);
  CHECK_THROWS_AS(
      make({.pre_tokenizer = R"({"type":"Split","pattern":{"String":"a"},"behavior":"x","invert":false})"}),
      FormatError);
  CHECK_THROWS_AS(make({.pre_tokenizer = R"({"type":"Sequence","pretokenizers":1})"}), FormatError);
  CHECK_THROWS_AS(make({.decoder = R"({"type":"Strip","content":"ab","start":0,"stop":0})"}), FormatError);
  CHECK_THROWS_AS(make({.post_processor = R"({"type":"TemplateProcessing","single":[
                        {"SpecialToken":{"id":"S","type_id":0}}],"special_tokens":{}})"}),
                  FormatError);
  CHECK_THROWS_AS(make({.added_tokens = R"({"content":"a"})"}), FormatError);
  CHECK_THROWS_AS(make({.added_tokens = "1"}), FormatError);
}

TEST_CASE("sequences are not read to any depth") {
  std::string normalizer = R"({"type":"NFC"})";
  for (int i = 0; i < 30; ++i) normalizer = R"({"type":"Sequence","normalizers":[)" + normalizer + "]}";
  CHECK_THROWS_AS(make({.normalizer = normalizer}), Unsupported);
}

TEST_CASE("a tokenizer is loaded from its file or folder") {
  const std::filesystem::path folder = std::filesystem::temp_directory_path() / "modicum_tokenizer_test";
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "tokenizer.json") << json_of({});
  CHECK(Tokenizer::load(folder).encode("ab").ids == Ids{3});
  CHECK(Tokenizer::load(folder / "tokenizer.json").fingerprint() == make({}).fingerprint());
  std::filesystem::remove_all(folder);
  CHECK_THROWS_AS(Tokenizer::load(folder), IoError);
}
