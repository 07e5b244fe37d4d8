// SPDX-License-Identifier: Apache-2.0
#include <filesystem>

#include <modicum/base/error.hpp>
#include <modicum/cag/document.hpp>

#include "base/temporary_directory.hpp"
#include "support/catch.hpp"

using modicum::cag::Document;
using modicum::cag::read_documents;

namespace {

std::vector<Document> read(std::initializer_list<std::filesystem::path> sources) {
  return read_documents(std::vector<std::filesystem::path>(sources));
}

}  // namespace

TEST_CASE("a folder is read in full depth, sorted by name, hidden entries left out") {
  const TemporaryDirectory folder;
  std::filesystem::create_directories(folder / "b");
  std::filesystem::create_directories(folder / ".git");
  folder.write("b/second.txt", "two");
  folder.write("a.md", "one\r\n");
  folder.write(".hidden.md", "no");
  folder.write(".git/config.txt", "no");
  const auto documents = read({folder.path()});
  REQUIRE(documents.size() == 2);
  REQUIRE(documents[0].name == "a.md");
  REQUIRE(documents[0].text == "one\r\n");
  REQUIRE(documents[1].name == "b/second.txt");
  REQUIRE(documents[1].source == (folder / "b/second.txt").string());
}

TEST_CASE("nothing is left out silently: files of other kinds in a folder are named") {
  const TemporaryDirectory folder;
  folder.write("a.md", "one");
  folder.write("plan.pdf", "%PDF");
  REQUIRE_THROWS_WITH(read({folder.path()}), Catch::Contains("plan.pdf"));
  REQUIRE_THROWS_AS(read({folder.path()}), modicum::Unsupported);
}

TEST_CASE("an empty folder, a missing file and an empty document are refused") {
  const TemporaryDirectory folder;
  REQUIRE_THROWS_AS(read({folder.path()}), modicum::InvalidArgument);
  REQUIRE_THROWS_AS(read({folder / "missing.md"}), modicum::IoError);
  folder.write("a.md", " \n\t\n");
  REQUIRE_THROWS_AS(read({folder.path()}), modicum::InvalidArgument);
}

TEST_CASE("text that is not UTF-8 is refused with the offset of its first bad byte") {
  const TemporaryDirectory folder;
  const char* const bad[] = {"ab\xff",     "ab\xc0\xaf", "ab\xed\xa0\x80", "ab\xf4\x90\x80\x80",
                             "ab\xe2\x82", "ab\x80"};
  for (const char* text : bad) {
    const auto path = folder.write("bad.txt", text);
    REQUIRE_THROWS_AS(read({path}), modicum::FormatError);
    REQUIRE_THROWS_WITH(read({path}), Catch::Contains("offset 2"));
  }
  const auto nul = folder.write("nul.txt", std::string_view("ab\0c", 4));
  REQUIRE_THROWS_WITH(read({nul}), Catch::Contains("offset 2"));
  const auto good = folder.write("good.txt",
                                 "\xef\xbb\xbf"
                                 "é語🙂\xf4\x8f\xbf\xbf");
  REQUIRE(read({good}).size() == 1);
}

TEST_CASE("two documents of one name are refused") {
  const TemporaryDirectory folder;
  std::filesystem::create_directories(folder / "x");
  folder.write("a.md", "one");
  folder.write("x/a.md", "two");
  REQUIRE_THROWS_WITH(read({folder / "a.md", folder / "x/a.md"}), Catch::Contains("'a.md' twice"));
}
