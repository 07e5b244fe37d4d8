// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <string>
#include <vector>

#include <modicum/base/error.hpp>
#include <modicum/cag/select.hpp>

#include "support/catch.hpp"

using namespace modicum;
using cag::Bm25;
using cag::Ranked;

namespace {

Bm25 index_of(std::initializer_list<std::string_view> texts, const cag::Bm25Options& options = {}) {
  return Bm25(std::span(texts.begin(), texts.size()), options);
}

std::vector<std::size_t> indices(const std::vector<Ranked>& ranked) {
  std::vector<std::size_t> result;
  for (const Ranked& r : ranked) result.push_back(r.index);
  return result;
}

/// Whether the only word of a text is found as `question`.
bool same_word(std::string_view text, std::string_view question) {
  return index_of({text}).rank(question, 1).size() == 1;
}

std::vector<std::string> words_of(const std::string& text) {
  std::vector<std::string> words(1);
  for (const char c : text) {
    if (c == ' ') {
      words.emplace_back();
    } else {
      words.back() += c;
    }
  }
  return words;
}

/// The formula, a text and a word at a time.
std::vector<Ranked> reference(const std::vector<std::string>& texts, const std::string& question,
                              const cag::Bm25Options& options) {
  const double count = static_cast<double>(texts.size());
  double total = 0;
  std::map<std::string, double> holding;
  for (const std::string& text : texts) {
    auto words = words_of(text);
    total += static_cast<double>(words.size());
    std::sort(words.begin(), words.end());
    words.erase(std::unique(words.begin(), words.end()), words.end());
    for (const std::string& word : words) ++holding[word];
  }
  std::vector<Ranked> ranked;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const auto words = words_of(texts[i]);
    const double length = static_cast<double>(words.size()) / (total / count);
    double score = 0;
    for (const std::string& word : words_of(question)) {
      const auto tf = static_cast<double>(std::count(words.begin(), words.end(), word));
      const double n = holding[word];
      const double idf = std::log(1 + (count - n + 0.5) / (n + 0.5));
      if (tf > 0) score += idf * tf / (tf + options.k1 * (1 - options.b + options.b * length));
    }
    if (score > 0) ranked.push_back({i, score});
  }
  std::stable_sort(ranked.begin(), ranked.end(),
                   [](const Ranked& a, const Ranked& b) { return a.score > b.score; });
  return ranked;
}

}  // namespace

TEST_CASE("scores are those of an example worked by hand") {
  const Bm25 index = index_of({"The cat sat.", "the dog", "A cat, and a CAT!"});
  const auto ranked = index.rank("cat", 10);
  // idf = ln(1 + 1.5/2.5); lengths 3 and 5 of a mean of 10/3.
  REQUIRE(indices(ranked) == std::vector<std::size_t>{2, 0});
  CHECK(ranked[0].score == Approx(std::log(1.6) * 2 / (2 + 1.65)).epsilon(1e-12));
  CHECK(ranked[1].score == Approx(std::log(1.6) * 1 / (1 + 1.11)).epsilon(1e-12));
  CHECK(index.size() == 3);
}

TEST_CASE("ranks and scores are those of the formula over random texts") {
  std::mt19937 random(7);
  for (int round = 0; round < 20; ++round) {
    // Few words and lengths, so that texts tie.
    const auto words = [&](std::size_t most) {
      std::string text;
      for (std::size_t i = 0, n = 1 + random() % most; i < n; ++i) {
        text += (i == 0 ? "w" : " w") + std::to_string(random() % 30);
      }
      return text;
    };
    std::vector<std::string> texts;
    for (int i = 0; i < 200; ++i) texts.push_back(words(12));
    const std::vector<std::string_view> views(texts.begin(), texts.end());
    const cag::Bm25Options options{.k1 = 0.3 * (round % 5), .b = 0.25 * (round % 5)};
    const Bm25 index(views, options);
    const std::string question = words(5);
    const auto expected = reference(texts, question, options);
    const auto ranked = index.rank(question, texts.size());
    REQUIRE(ranked.size() == expected.size());
    for (std::size_t i = 0; i < ranked.size(); ++i) {
      REQUIRE(ranked[i].index == expected[i].index);
      REQUIRE(ranked[i].score == Approx(expected[i].score).epsilon(1e-12));
    }
    const auto best = indices(index.rank(question, 7));
    REQUIRE(std::equal(best.begin(), best.end(), indices(ranked).begin()));
  }
}

TEST_CASE("texts with equal scores stay in their order, and those that share no word are left out") {
  const Bm25 index = index_of({"b a", "c", "a b", "", "a b"});
  CHECK(indices(index.rank("a", 10)) == std::vector<std::size_t>{0, 2, 4});
  CHECK(indices(index.rank("a", 2)) == std::vector<std::size_t>{0, 2});
  CHECK(index.rank("a", 0).empty());
  CHECK(index.rank("d", 10).empty());
  CHECK(index.rank("", 10).empty());
}

TEST_CASE("a rare word counts more than a frequent one, and a word asked twice more than once") {
  const Bm25 index = index_of({"fee ticket", "fee card", "fee pass", "fee card"});
  CHECK(index.rank("fee ticket", 1).front().index == 0);
  CHECK(index.rank("card card ticket", 1).front().index == 1);
}

TEST_CASE("no texts and texts without words have an answer to nothing") {
  CHECK(index_of({}).rank("a", 3).empty());
  CHECK(index_of({"", " .,! "}).rank("a", 3).empty());
  CHECK(index_of({"", " .,! "}).size() == 2);
}

TEST_CASE("words compare without case, composition and punctuation, in any script") {
  CHECK(same_word("STRAẞE", "straße"));
  CHECK(same_word("Ärzte", "a\u0308rzte"));  // decomposed
  CHECK(same_word("ΟΔΟΣ", "οδος"));
  CHECK(same_word("Приказ", "«ПРИКАЗ»"));
  CHECK(same_word("हिन्दी", "हिन्दी।"));
  CHECK_FALSE(same_word("हिन्दी", "हन"));  // vowel signs belong to the word
  CHECK(same_word("٣٤", "٣٤"));
  CHECK_FALSE(same_word("cat", "cats"));
  CHECK_FALSE(same_word("a_b", "ab"));
  CHECK(same_word("a_b", "b"));
  CHECK_FALSE(same_word("\u0301", "\u0301"));  // a mark alone is no word
}

TEST_CASE("Chinese and Japanese characters are words, Korean syllables make up words") {
  CHECK(same_word("年票三十欧元", "票"));
  CHECK(same_word("ひらがなカタカナ", "カ"));
  CHECK(same_word("abc年def", "abc"));
  CHECK(same_word("𠀀𠀁", "𠀁"));
  CHECK_FALSE(same_word("한국어", "국"));
  CHECK(same_word("한국어 책", "책"));
  CHECK(index_of({"三十", "十", "年"}).rank("三十", 3).front().index == 0);
}

TEST_CASE("what is not UTF-8 ends a word and harms nobody") {
  CHECK(
      same_word("cat\xff"
                "dog",
                "dog"));
  CHECK(same_word("cat\xe2\x82", "cat"));
  CHECK(same_word("cat",
                  "\x80"
                  "cat\xf0"));
}

TEST_CASE("options out of range are refused") {
  CHECK_THROWS_AS(index_of({"a"}, {.k1 = -1}), InvalidArgument);
  CHECK_THROWS_AS(index_of({"a"}, {.k1 = NAN}), InvalidArgument);
  CHECK_THROWS_AS(index_of({"a"}, {.b = 1.5}), InvalidArgument);
  CHECK(index_of({"a"}, {.k1 = 0, .b = 0}).rank("a", 1).front().score == Approx(std::log(1 + 0.5 / 1.5)));
}
