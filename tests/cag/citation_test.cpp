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
  const auto citation = cite(texts.prompt, texts.documents, "What does the year card cost?", "30 euros");
  REQUIRE(citation);
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
  REQUIRE(archive);
  REQUIRE(archive->line == 5);
  const auto library =
      cite(texts.prompt, texts.documents, "When is the library open on Monday?", "9:00 to 17:00.");
  REQUIRE(library);
  REQUIRE(library->line == 2);
}

TEST_CASE("an answer that no line holds has no citation") {
  Texts texts;
  texts.add("fees.md", "Day ticket: 4 euros\n");
  REQUIRE_FALSE(cite(texts.prompt, texts.documents, "Where?", "Not in the documents."));
  REQUIRE_FALSE(cite(texts.prompt, texts.documents, "Where?", " . "));
  REQUIRE_FALSE(cite(texts.prompt, texts.documents, "Where?", ""));
}
