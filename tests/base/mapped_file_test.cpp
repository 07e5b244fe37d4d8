// SPDX-License-Identifier: Apache-2.0
#include <string_view>

#include <sys/stat.h>

#include <modicum/base/error.hpp>
#include <modicum/base/mapped_file.hpp>

#include "base/temporary_directory.hpp"
#include "support/catch.hpp"

using namespace modicum;
using Catch::Matchers::Contains;

namespace {

std::string_view text_of(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

}  // namespace

TEST_CASE("a mapped file shows the bytes of the file") {
  const TemporaryDirectory directory;
  const MappedFile file(directory.write("a", "some bytes"));
  CHECK(text_of(file) == "some bytes");
  CHECK(file.path() == directory / "a");
}

TEST_CASE("an empty file and a default MappedFile have no bytes") {
  const TemporaryDirectory directory;
  CHECK(MappedFile(directory.write("a", "")).bytes().empty());
  CHECK(MappedFile().bytes().empty());
  CHECK(MappedFile().path().empty());
  CHECK(MappedFile().owner() == nullptr);
}

TEST_CASE("a mapping outlives its file, its object and a rename over its path") {
  const TemporaryDirectory directory;
  MappedFile file(directory.write("a", "old"));
  const MappedFile copy = file;
  const auto owner = file.owner();
  const auto bytes = file.bytes();
  file = MappedFile();
  std::filesystem::rename(directory.write("b", "new"), directory / "a");
  CHECK(text_of(copy) == "old");
  CHECK(bytes.data() == copy.bytes().data());
  CHECK(text_of(MappedFile(directory / "a")) == "new");
  CHECK(owner == copy.owner());
}

TEST_CASE("what is no readable regular file is refused with its path and the reason") {
  const TemporaryDirectory directory;
  CHECK_THROWS_AS(MappedFile(directory / "none"), IoError);
  CHECK_THROWS_WITH(MappedFile(directory / "none"), Contains("none") && Contains("No such file"));
  CHECK_THROWS_WITH(MappedFile(directory.path()), Contains("a regular file, got a directory"));
  REQUIRE(::mkfifo((directory / "pipe").c_str(), 0600) == 0);
  CHECK_THROWS_WITH(MappedFile(directory / "pipe"), Contains("pipe"));
  CHECK_THROWS_AS(MappedFile("/dev/null"), IoError);
}
