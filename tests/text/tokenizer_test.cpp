// SPDX-License-Identifier: Apache-2.0
#include <modicum/base/error.hpp>

#include "support/catch.hpp"
#include "text/tokenizer_fixture.hpp"

TEST_CASE("pairs are joined in the order of the merges, the leftmost of equals first") {
  const Tokenizer tokenizer =
      make({.vocabulary = R"("a":0,"aa":1,"b":2,"ab":3)", .merges = R"(["a","a"],["a","b"])"});
  CHECK(tokenizer.encode("aaab").ids == Ids{1, 3});
  CHECK(tokenizer.encode("aab").ids == Ids{1, 2});
}

TEST_CASE("merges may be pairs or lines") {
  const Parts lines{.merges = R"("#version: 0.2","a b","ab c")"};
  CHECK(make(lines).encode("abcab").ids == Ids{5, 3});
  CHECK_THROWS_AS(make({.merges = R"("a b",["ab","c"])"}), FormatError);
  CHECK_THROWS_AS(make({.merges = R"("a b c")"}), FormatError);
}

TEST_CASE("unknown characters become the unknown token, each or all in one") {
  CHECK(make({}).encode("axyb").ids == Ids{1, 0, 0, 2});
  const Tokenizer fusing = make({.model_options = R"("unk_token":"<unk>","fuse_unk":true)"});
  CHECK(fusing.encode("axyb").ids == Ids{1, 0, 2});
  CHECK(covered(fusing, "axyb") == Strings{"a", "xy", "b"});
  CHECK(make({.model_options = ""}).encode("axyb").ids == Ids{3});
}

TEST_CASE("an unknown token that is missing is only missed when it is needed") {
  const Tokenizer tokenizer = make({.model_options = R"("unk_token":"?")"});
  CHECK(tokenizer.encode("ab").ids == Ids{3});
  CHECK_THROWS_AS(tokenizer.encode("x"), FormatError);
}

TEST_CASE("unknown characters fall back to bytes where there is a token for each") {
  const Tokenizer tokenizer = make({.vocabulary = R"("<unk>":0,"a":1,"<0xC3>":2,"<0xA9>":3)",
                                    .merges = "",
                                    .model_options = R"("unk_token":"<unk>","byte_fallback":true)"});
  CHECK(tokenizer.encode("aéè").ids == Ids{1, 2, 3, 0});
  CHECK(covered(tokenizer, "aé") == Strings{"a", "é", "é"});
}

TEST_CASE("subword marks distinguish the inside and the end of a word") {
  const Tokenizer tokenizer =
      make({.vocabulary = R"("a":0,"##a":1,"##a</w>":2,"aa":3,"a</w>":4)",
            .merges = R"(["a","##a"])",
            .model_options = R"("continuing_subword_prefix":"##","end_of_word_suffix":"</w>")",
            .pre_tokenizer = R"({"type":"WhitespaceSplit"})"});
  CHECK(tokenizer.encode("aaa a").ids == Ids{3, 2, 4});
}

TEST_CASE("a word of the vocabulary is taken whole where merges are to be ignored") {
  const Parts parts{.merges = "", .model_options = R"("ignore_merges":true)"};
  CHECK(make(parts).encode("abc").ids == Ids{5});
  CHECK(make(parts).encode("abca").ids == Ids{1, 2, 4, 1});
}

TEST_CASE("bytes are written as letters, and offsets cover whole characters") {
  const Tokenizer tokenizer = make({.vocabulary = letters(R"("\u0120a":256)"),
                                    .merges = R"(["\u0120","a"])",
                                    .model_options = "",
                                    .pre_tokenizer = R"({"type":"ByteLevel","add_prefix_space":false})",
                                    .decoder = R"({"type":"ByteLevel"})"});
  CHECK(tokenizer.encode(" aé").ids == Ids{256, 0xC3, 0xA9});
  CHECK(covered(tokenizer, " aé") == Strings{" a", "é", "é"});
  CHECK(tokenizer.decode(tokenizer.encode(" aé\n😀").ids) == " aé\n😀");
  CHECK(tokenizer.decode(Ids{0xF0, 0x9F, 'a', 0xC3}) == "\uFFFDa\uFFFD");
}

TEST_CASE("a space can be put before the first word, and offsets trimmed of it") {
  const auto offsets = [](const char* trim) {
    const std::string step =
        std::string(R"({"type":"ByteLevel","add_prefix_space":true,"trim_offsets":)") + trim + "}";
    const Tokenizer tokenizer = make({.vocabulary = letters(R"("\u0120a":256)"),
                                      .merges = R"(["\u0120","a"])",
                                      .model_options = "",
                                      .pre_tokenizer = step,
                                      .post_processor = step});
    CHECK(tokenizer.encode("a a").ids == Ids{256, 256});
    return covered(tokenizer, "a a");
  };
  CHECK(offsets("false") == Strings{"a", " a"});
  CHECK(offsets("true") == Strings{"a", "a"});
}

TEST_CASE("a template puts special tokens around the text, unless told not to") {
  const Tokenizer tokenizer = make({.post_processor = R"({"type":"TemplateProcessing","single":[
      {"SpecialToken":{"id":"S","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],"pair":[],
      "special_tokens":{"S":{"id":"S","ids":[7,8],"tokens":["x","y"]}}})"});
  CHECK(tokenizer.encode("ab").ids == Ids{7, 8, 3});
  CHECK(tokenizer.encode("ab").offsets == std::vector<ByteRange>{{0, 0}, {0, 0}, {0, 2}});
  CHECK(tokenizer.encode("ab", AddSpecial::no).ids == Ids{3});
  CHECK(tokenizer.encode("").ids == Ids{7, 8});
}

TEST_CASE("an empty text has no tokens") {
  CHECK(make({}).encode("").ids.empty());
  CHECK(make({}).decode(Ids{}).empty());
}

TEST_CASE("text that is not UTF-8 is refused with the place of the fault") {
  const Tokenizer tokenizer = make({});
  for (const char* text : {"ab\xff", "ab\xC3", "ab\xED\xA0\x80", "ab\xC0\x80", "ab\xF4\x90\x80\x80"}) {
    CHECK_THROWS_WITH(tokenizer.encode(text), Catch::Matchers::Contains("at byte 2"));
  }
}

TEST_CASE("added tokens are found before the model sees the text, the longest first") {
  const Tokenizer tokenizer = make({.added_tokens = added("<a>") + "," + added("<a><a>")});
  CHECK(tokenizer.encode("b<a>b").ids == Ids{2, 6, 2});
  CHECK(tokenizer.encode("<a><a><a>").ids == Ids{7, 6});
  CHECK(tokenizer.vocabulary_size() == 8);
  CHECK(tokenizer.id_of("<a>") == 6);
  CHECK(tokenizer.token_of(7) == "<a><a>");
}

TEST_CASE("added tokens can take the space around them and insist on being a word") {
  CHECK(covered(make({.added_tokens = added("<m>", "l")}), "a \t<m> b") == Strings{"a", " \t<m>", " ", "b"});
  CHECK(covered(make({.added_tokens = added("<m>", "r")}), "a <m> b") == Strings{"a", " ", "<m> ", "b"});
  CHECK(covered(make({.added_tokens = added("ab", "w")}), "ab.abc cab") ==
        Strings{"ab", ".", "abc", " ", "c", "ab"});
}

TEST_CASE("normalized added tokens are looked for in normalized text") {
  const auto ids = [](const char* flags) {
    return make({.normalizer = R"({"type":"Lowercase"})", .added_tokens = added("Day", flags)})
        .encode("DAY")
        .ids;
  };
  CHECK(ids("n") == Ids{6});
  CHECK(ids("") == Ids{0, 1, 0});
}

TEST_CASE("special tokens are left out of decoded text unless they are wanted") {
  const Tokenizer tokenizer = make({.decoder = R"({"type":"Fuse"})", .added_tokens = added("<s>", "s")});
  CHECK(tokenizer.is_special(6));
  CHECK_FALSE(tokenizer.is_special(1));
  CHECK(tokenizer.decode(Ids{6, 3, 6}) == "ab");
  CHECK(tokenizer.decode(Ids{6, 3, 6}, SpecialTokens::keep) == "<s>ab<s>");
}

TEST_CASE("an id that no token has is refused") {
  const Tokenizer tokenizer = make({});
  for (const TokenId id : {-1, 6, 1 << 30}) {
    CHECK_THROWS_AS(tokenizer.decode(Ids{id}), InvalidArgument);
    CHECK_FALSE(tokenizer.token_of(id));
    CHECK_FALSE(tokenizer.is_special(id));
  }
}

TEST_CASE("the fingerprint follows the text of the file") {
  CHECK(make({}).fingerprint().size() == 32);
  CHECK(make({}).fingerprint() == make({}).fingerprint());
  CHECK(make({}).fingerprint() != make({.merges = R"(["a","b"])"}).fingerprint());
}

TEST_CASE("a long text in one piece takes about linear time") {
  // No merge joins over a space, and the queue takes what cannot be cut.
  std::string text;
  for (int i = 0; i < 300000; ++i) text += "abc"[i * 7 % 3];
  CHECK(make({}).encode(text).ids.size() == make({}).encode(text + text).ids.size() / 2);
  const Parts runs{.vocabulary = R"("a":0,"aa":1,"aaaa":2)", .merges = R"(["a","a"],["aa","aa"])"};
  CHECK(make(runs).encode(std::string(1000001, 'a')).ids.size() == 250001);
}
