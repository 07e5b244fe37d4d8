// SPDX-License-Identifier: Apache-2.0
#include <string>
#include <vector>

#include <modicum/cag/citation.hpp>

#include "support/catch.hpp"

using namespace modicum::cag;

namespace {

struct Texts {
  std::string prompt;
  std::vector<KnownDocument> documents;

  void add(const std::string& name, const std::string& text) {
    prompt += "[" + name + "]\n";
    const std::size_t begin = prompt.size();
    prompt += text;
    documents.push_back(
        {.name = name, .source = "in/" + name, .hash = {}, .span = {begin, prompt.size(), 0, 0}});
    prompt += "\n\n";
  }
};

}  // namespace

TEST_CASE("the quoted line is exactly the cited bytes of its document") {
  Texts texts;
  texts.add("fees.md", "# Fees\r\nDay ticket: 4 euros\r\nYear card: 30 euros\r\n");
  const auto found = cite(texts.prompt, texts.documents, "What does the year card cost?", "30 euros");
  REQUIRE(found.size() == 1);
  const auto* citation = &found[0];
  REQUIRE(citation->literal);
  REQUIRE(citation->heading == "Fees");
  REQUIRE(citation->page == 0);
  REQUIRE(citation->document == "fees.md");
  REQUIRE(citation->source == "in/fees.md");
  REQUIRE(citation->line == 3);
  REQUIRE(citation->quote == "Year card: 30 euros");
  const std::string file = texts.prompt.substr(texts.documents[0].span.text_begin);
  REQUIRE(file.substr(citation->bytes.begin, citation->bytes.end - citation->bytes.begin) == citation->quote);
}

TEST_CASE("of several lines with the answer, the one that shares most with the question is cited") {
  Texts texts;
  texts.add(
      "hours.md",
      "## Library\nMonday: 9:00 to 17:00\nTuesday: 10:00 to 18:00\n## Archive\nMonday: 9:00 to 17:00\n");
  const auto archive =
      cite(texts.prompt, texts.documents, "When is the archive open on Monday?", "9:00 to 17:00");
  REQUIRE(archive.size() == 1);
  REQUIRE(archive[0].line == 5);
  REQUIRE(archive[0].heading == "Archive");
  const auto library =
      cite(texts.prompt, texts.documents, "When is the library open on Monday?", "9:00 to 17:00.");
  REQUIRE(library.size() == 1);
  REQUIRE(library[0].line == 2);
}

TEST_CASE("what the model looked at decides between lines that the question does not tell apart") {
  Texts texts;
  texts.add("hours.md", "Hall: 9:00 to 17:00\nCafé: 9:00 to 17:00\nShop: 9:00 to 17:00\n");
  const std::size_t begin = texts.documents[0].span.text_begin;
  std::vector<std::uint64_t> begins;
  std::vector<float> mass;
  for (std::size_t byte = 0; byte < texts.prompt.size(); ++byte) {
    begins.push_back(byte);
    mass.push_back(byte >= begin + 20 && byte < begin + 40 ? 3.0f : 1.0f);
  }
  const auto found = cite(texts.prompt, texts.documents, "When is it open?", "9:00 to 17:00", {mass, begins});
  REQUIRE(found.size() == 1);
  REQUIRE(found[0].line == 2);
  REQUIRE(found[0].attention > 0.5);
  REQUIRE(found[0].attention < 0.7);
}

TEST_CASE("an answer of several sentences is cited sentence by sentence, a reworded one by its words") {
  Texts texts;
  texts.add("a.md",
            "Day ticket: 4 euros\nThe hall opens on Mondays at nine in the morning.\nYear card: 30 euros\n");
  const auto two = cite(texts.prompt, texts.documents, "Prices?", "Day ticket: 4 euros\nYear card: 30 euros");
  REQUIRE(two.size() == 2);
  REQUIRE(two[0].line == 1);
  REQUIRE(two[1].line == 3);
  const auto words =
      cite(texts.prompt, texts.documents, "When?", "It opens at nine in the morning on Mondays");
  REQUIRE(words.size() == 1);
  REQUIRE(words[0].line == 2);
  REQUIRE_FALSE(words[0].literal);
  REQUIRE(cite(texts.prompt, texts.documents, "When?", "It closes late, after midnight, on the").empty());
}

TEST_CASE("a line of a converted document has the page of its original") {
  Texts texts;
  texts.add("plan.pdf", "one\ntwo\nthree\nfour\n");
  texts.documents[0].pages = {0, 4, 14};
  texts.documents[0].converted = true;
  const auto page = [&](const char* answer) {
    const auto found = cite(texts.prompt, texts.documents, "?", answer);
    REQUIRE(found.size() == 1);
    REQUIRE(found[0].converted);
    return found[0].page;
  };
  REQUIRE(page("one") == 1);
  REQUIRE(page("two") == 2);
  REQUIRE(page("three") == 2);
  REQUIRE(page("four") == 3);
}

TEST_CASE("an answer that no line holds has no citation") {
  Texts texts;
  texts.add("fees.md", "Day ticket: 4 euros\n");
  REQUIRE(cite(texts.prompt, texts.documents, "Where?", "Not in the documents.").empty());
  REQUIRE(cite(texts.prompt, texts.documents, "Where?", " . ").empty());
  REQUIRE(cite(texts.prompt, texts.documents, "Where?", "").empty());
}
