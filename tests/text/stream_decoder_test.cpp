// SPDX-License-Identifier: Apache-2.0
#include <random>

#include <modicum/base/error.hpp>

#include "support/catch.hpp"
#include "text/tokenizer_fixture.hpp"

namespace {

Tokenizer byte_level() {
  return make({.vocabulary = letters(R"("\u0120a":256)"),
               .merges = R"(["\u0120","a"])",
               .model_options = "",
               .decoder = R"({"type":"ByteLevel"})",
               .added_tokens = added("<s>", "s")});
}

Tokenizer sentence_piece() {
  return make(
      {.vocabulary = R"("<s>":0,"▁":1,"▁a":2,"b":3,"<0xC3>":4,"<0xA9>":5,"<0x41>":6," ":7)",
       .merges = "",
       .decoder = R"({"type":"Sequence","decoders":[
                   {"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},
                   {"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]})",
       .added_tokens = added("<s>", "s")});
}

Strings pushed(const Tokenizer& tokenizer, const Ids& ids) {
  StreamDecoder stream(tokenizer);
  Strings pieces;
  for (const TokenId id : ids) pieces.push_back(stream.push(id));
  pieces.push_back(stream.finish());
  return pieces;
}

}  // namespace

TEST_CASE("half a character is never emitted") {
  CHECK(pushed(byte_level(), {0xF0, 0x9F, 0x98, 0x80, 256}) == Strings{"", "", "", "😀", " a", ""});
  CHECK(pushed(byte_level(), {0xC3, 'a', 0xC3}) == Strings{"", "\uFFFDa", "", "\uFFFD"});
  CHECK(pushed(sentence_piece(), {4, 5, 3}) == Strings{"", "", "éb", ""});
}

TEST_CASE("only the first space of the text is stripped, whenever it comes") {
  CHECK(pushed(sentence_piece(), {2, 2, 3}) == Strings{"a", " a", "b", ""});
  CHECK(pushed(sentence_piece(), {0, 2}) == Strings{"", "a", ""});
  CHECK(pushed(sentence_piece(), {3, 2}) == Strings{"b", " a", ""});
}

TEST_CASE("pieces joined are the text decoded at once") {
  std::mt19937 random(1);
  for (const Tokenizer& tokenizer : {byte_level(), sentence_piece()}) {
    for (int round = 0; round < 500; ++round) {
      Ids ids(random() % 20);
      for (TokenId& id : ids) id = static_cast<TokenId>(random() % tokenizer.vocabulary_size());
      for (const SpecialTokens special : {SpecialTokens::skip, SpecialTokens::keep}) {
        StreamDecoder stream(tokenizer, special);
        std::string joined;
        for (const TokenId id : ids) joined += stream.push(id);
        joined += stream.finish();
        CHECK(joined == tokenizer.decode(ids, special));
      }
    }
  }
}

TEST_CASE("an unknown id leaves the stream as it was, and finishing begins a new text") {
  StreamDecoder stream(sentence_piece());
  CHECK(stream.push(4).empty());
  CHECK_THROWS_AS(stream.push(99), InvalidArgument);
  CHECK(stream.push(5).empty());
  CHECK(stream.finish() == "é");
  CHECK(stream.push(2) == "a");
  StreamDecoder moved = std::move(stream);
  CHECK(moved.push(2) == " a");
}
