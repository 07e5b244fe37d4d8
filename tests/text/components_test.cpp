// SPDX-License-Identifier: Apache-2.0
// Expected values are those of Hugging Face `tokenizers`.
#include <modicum/base/error.hpp>

#include "support/catch.hpp"
#include "text/tokenizer_fixture.hpp"

namespace {

/// What a pre-tokenizer cuts a text into, seen through a model that makes one token of each piece.
Strings pieces(const std::string& pre_tokenizer, std::string_view text) {
  const Tokenizer tokenizer = make({.vocabulary = R"("<?>":0)",
                                    .merges = "",
                                    .model_options = R"("unk_token":"<?>","fuse_unk":true)",
                                    .pre_tokenizer = pre_tokenizer});
  return covered(tokenizer, text);
}

Strings split(const std::string& pattern, std::string_view text, const std::string& behavior = "Isolated",
              bool invert = false) {
  return pieces(R"({"type":"Split","pattern":{)" + pattern + R"(},"behavior":")" + behavior +
                    R"(","invert":)" + (invert ? "true}" : "false}"),
                text);
}

Strings matches(const std::string& regex, std::string_view text) {
  return split(R"("Regex":")" + regex + "\"", text, "Removed", true);
}

/// Normalized text and offsets, seen through a model of single characters.
std::string normalized(const std::string& normalizer, std::string_view text) {
  const Tokenizer tokenizer = make({.vocabulary = R"("<0x00>":0)" +
                                                  [] {
                                                    std::string bytes;
                                                    for (int b = 1; b < 256; ++b) {
                                                      char entry[24];
                                                      std::snprintf(entry, sizeof entry, ",\"<0x%02X>\":%d",
                                                                    static_cast<unsigned>(b), b);
                                                      bytes += entry;
                                                    }
                                                    return bytes;
                                                  }(),
                                    .merges = "",
                                    .model_options = R"("byte_fallback":true)",
                                    .normalizer = normalizer,
                                    .decoder = R"({"type":"ByteFallback"})"});
  return tokenizer.decode(tokenizer.encode(text).ids);
}

std::string decoded(const std::string& decoder, const std::string& vocabulary, const Ids& ids) {
  const Tokenizer tokenizer =
      make({.vocabulary = vocabulary, .merges = "", .model_options = "", .decoder = decoder});
  return tokenizer.decode(ids);
}

}  // namespace

TEST_CASE("a split treats its matches as it is told") {
  const std::string dash = R"("String":"-")";
  const std::string_view text = "the-final--countdown";
  CHECK(split(dash, text, "Removed") == Strings{"the", "final", "countdown"});
  CHECK(split(dash, text, "Isolated") == Strings{"the", "-", "final", "-", "-", "countdown"});
  CHECK(split(dash, text, "MergedWithPrevious") == Strings{"the-", "final-", "-", "countdown"});
  CHECK(split(dash, text, "MergedWithNext") == Strings{"the", "-final", "-", "-countdown"});
  CHECK(split(dash, text, "Contiguous") == Strings{"the", "-", "final", "--", "countdown"});
  CHECK(split(dash, text, "Removed", true) == Strings{"-", "-", "-"});
}

TEST_CASE("patterns see the Unicode of the original, not of the regex library") {
  CHECK(matches(R"(\\p{L}+)", "a\u1C89b 1") == Strings{"a\u1C89b"});  // U+1C89 came with Unicode 16
  CHECK(matches(R"(\\p{Lu}|\\p{N})", "aÄ٣𝟘") == Strings{"Ä", "٣", "𝟘"});
  CHECK(matches(R"(\\s+)", "a\u00A0\u3000\u200Bb\u0085") == Strings{"\u00A0\u3000", "\u0085"});
  CHECK(matches(R"([^\\s\\p{L}]+)", "é ½é!") == Strings{"½", "!"});
  CHECK(matches(R"([一-龥]+|[^一-龥]+)", "漢字かな") == Strings{"漢字", "かな"});
  CHECK(matches(R"(\\w+)", "x²") == Strings{"x²"});
  CHECK(matches(R"([\\w]+)", "x²") == Strings{"x"});
}

TEST_CASE("case is folded as the original folds it") {
  CHECK(matches("(?i:'s|'k)", "'s'S'\u017F'\u212A'x") == Strings{"'s", "'S", "'\u017F", "'\u212A"});
  CHECK(matches("'(?i:[sdmt]|ll)", "'T'LL'\u017F") == Strings{"'T", "'LL", "'\u017F"});
}

TEST_CASE("empty matches separate but do not stand for text") {
  CHECK(split("\"Regex\":\"(?=[A-Z])\"", "aBcD") == Strings{"a", "Bc", "D"});
  CHECK(split(R"("String":"")", "abc") == Strings{"a", "b", "c"});
}

TEST_CASE("a pattern whose meaning might differ is refused by name") {
  for (const char* pattern :
       {R"(\\p{Han})", "[[:alpha:]]", "[a&&b]", R"((a)\\1)", "(?x)a", "a{2}?", R"(\\X)", "(?i)ss", "(?i)é",
        "(a?)*", "a(?i)b", "a**", "{", R"(\\h)", "(?i)[^a]", "a{1001}"}) {
    CAPTURE(pattern);
    CHECK_THROWS_AS(matches(pattern, "a"), Unsupported);
  }
  for (const char* pattern : {"(", "a)", "[a", "*a", R"(\\p{L)", "[b-a]"}) {
    CAPTURE(pattern);
    CHECK_THROWS_AS(matches(pattern, "a"), FormatError);
  }
}

TEST_CASE("a pattern that would run for ever gives up") {
  CHECK_THROWS_AS(matches("(?:a|aa)+b|c", std::string(200, 'a') + "d"), Unsupported);
}

TEST_CASE("words, digits, punctuation and white space are told apart") {
  CHECK(pieces(R"({"type":"Whitespace"})", "Hi, you_2 é!?") == Strings{"Hi", ",", "you_2", "é", "!?"});
  CHECK(pieces(R"({"type":"WhitespaceSplit"})", " a, b\n") == Strings{"a,", "b"});
  CHECK(pieces(R"({"type":"Digits","individual_digits":true})", "a12b") == Strings{"a", "1", "2", "b"});
  CHECK(pieces(R"({"type":"Digits","individual_digits":false})", "a12b") == Strings{"a", "12", "b"});
  CHECK(pieces(R"({"type":"Punctuation"})", "a,!b") == Strings{"a", ",", "!", "b"});
  CHECK(pieces(R"({"type":"BertPreTokenizer"})", "a, b") == Strings{"a", ",", "b"});
}

TEST_CASE("metaspace marks the beginnings of words") {
  CHECK(pieces(R"({"type":"Metaspace","replacement":"▁"})", "a b") == Strings{"a", " b"});
  CHECK(pieces(R"({"type":"Metaspace","replacement":"▁","prepend_scheme":"never","split":false})", "a b") ==
        Strings{"a b"});
  CHECK_THROWS_AS(pieces(R"({"type":"Metaspace","replacement":"ab"})", ""), FormatError);
}

TEST_CASE("normalizers rewrite text") {
  CHECK(normalized(R"({"type":"NFC"})", "e\u0301 \u1100\u1161\u11A8 \u0344") == "é 각 \u0308\u0301");
  CHECK(normalized(R"({"type":"NFD"})", "é각") == "e\u0301\u1100\u1161\u11A8");
  CHECK(normalized(R"({"type":"NFKC"})", "ﬁ①e\u0301") == "fi1é");
  CHECK(normalized(R"({"type":"NFKD"})", "ﬁé") == "fie\u0301");
  CHECK(normalized(R"({"type":"NFD"})", "a\u0345\u0334\u0323") == "a\u0334\u0323\u0345");
  CHECK(normalized(R"({"type":"Lowercase"})", "AÉİß") == "aéi\u0307ß");
  CHECK(normalized(R"({"type":"Strip","strip_left":true,"strip_right":true})", "\u3000 a b\n") == "a b");
  CHECK(normalized(R"({"type":"Strip","strip_left":true,"strip_right":false})", " a ") == "a ");
  CHECK(normalized(R"({"type":"Prepend","prepend":"▁"})", "a") == "▁a");
  CHECK(normalized(R"({"type":"Replace","pattern":{"Regex":" {2,}"},"content":"_"})", "a  b   c d") ==
        "a_b_c d");
  CHECK(normalized(
            R"({"type":"Sequence","normalizers":[{"type":"Lowercase"},{"type":"Prepend","prepend":"X"}]})",
            "A") == "Xa");
}

TEST_CASE("offsets lead back to the text before normalization") {
  const auto offsets = [](const char* normalizer, std::string_view text) {
    return covered(make({.vocabulary = R"("?":0)",
                         .merges = "",
                         .model_options = R"("unk_token":"?")",
                         .normalizer = normalizer}),
                   text);
  };
  CHECK(offsets(R"({"type":"NFC"})", "ae\u0301b") == Strings{"a", "e", "b"});
  CHECK(offsets(R"({"type":"NFD"})", "aéb") == Strings{"a", "é", "é", "b"});
  CHECK(offsets(R"({"type":"Prepend","prepend":"▁"})", "éb") == Strings{"é", "é", "b"});
  CHECK(offsets(R"({"type":"Replace","pattern":{"String":"ab"},"content":"xyz"})", "cabd") ==
        Strings{"c", "b", "b", "b", "d"});
}

TEST_CASE("decoders undo what stands for something else") {
  CHECK(decoded(R"({"type":"Metaspace","replacement":"▁"})", R"("▁a":0,"▁b▁":1)", {0, 1}) == "a b ");
  CHECK(decoded(R"({"type":"Strip","content":" ","start":1,"stop":1})", R"("  a ":0," ":1)", {0, 1}) == " a");
  CHECK(decoded(R"({"type":"Replace","pattern":{"String":"a"},"content":"o"})", R"("aba":0)", {0}) == "obo");
  CHECK(decoded(R"({"type":"BPEDecoder","suffix":"</w>"})", R"("a</w>":0)", {0, 0}) == "a a");
  CHECK(decoded("null", R"("a":0,"b":1)", {0, 1}) == "a b");
}

TEST_CASE("byte tokens become text only if their whole run is UTF-8") {
  const std::string vocabulary = R"("<0xC3>":0,"<0xA9>":1,"a":2)";
  CHECK(decoded(R"({"type":"ByteFallback"})", vocabulary, {0, 1, 2, 0, 2}) == "éa\uFFFDa");
  CHECK(decoded(R"({"type":"ByteFallback"})", vocabulary, {0, 1, 0}) == "\uFFFD\uFFFD\uFFFD");
}

TEST_CASE("a component that is not implemented is named") {
  using Catch::Matchers::Contains;
  CHECK_THROWS_WITH(make({.normalizer = R"({"type":"BertNormalizer"})"}),
                    Contains("normalizer 'BertNormalizer'"));
  CHECK_THROWS_WITH(make({.pre_tokenizer = R"({"type":"UnicodeScripts"})"}),
                    Contains("pre_tokenizer 'UnicodeScripts'"));
  CHECK_THROWS_WITH(make({.post_processor = R"({"type":"Other"})"}), Contains("post_processor 'Other'"));
  CHECK_THROWS_WITH(make({.decoder = R"({"type":"WordPiece"})"}), Contains("decoder 'WordPiece'"));
  CHECK_THROWS_AS(make({.model_options = R"("dropout":0.1)"}), Unsupported);
  CHECK_THROWS_WITH(Tokenizer::parse(R"({"model":{"type":"Unigram","vocab":[]}})"),
                    Contains("model 'Unigram'"));
  CHECK_THROWS_WITH(Tokenizer::parse(R"({"truncation":{"max_length":5},"model":{"vocab":{},"merges":[]}})"),
                    Contains("truncation"));
}
