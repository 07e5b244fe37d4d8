// SPDX-License-Identifier: Apache-2.0
#include <fstream>

#include <modicum/base/atomic_directory.hpp>
#include <modicum/base/error.hpp>

#include "base/temporary_directory.hpp"
#include "support/catch.hpp"

using namespace modicum;
using Catch::Matchers::Contains;

namespace fs = std::filesystem;

namespace {

void write(const fs::path& path) {
  std::ofstream(path) << "x";
}

}  // namespace

TEST_CASE("a directory appears with all its files, or not at all") {
  const TemporaryDirectory above;
  {
    AtomicDirectory directory(above / "new");
    write(directory.temporary() / "a");
    CHECK_FALSE(fs::exists(above / "new"));
  }
  CHECK(above.names().empty());
  AtomicDirectory directory(above / "new");
  write(directory.temporary() / "a");
  directory.commit();
  CHECK(above.names() == std::vector<std::string>{"new"});
  CHECK(fs::exists(above / "new" / "a"));
}

TEST_CASE(
    "an empty directory is replaced, missing ones above are made, and a trailing slash changes nothing") {
  const TemporaryDirectory above;
  fs::create_directory(above / "empty");
  AtomicDirectory over(above / "empty/");
  write(over.temporary() / "a");
  over.commit();
  CHECK(fs::exists(above / "empty" / "a"));
  AtomicDirectory deep(above / "one/two/three");
  deep.commit();
  CHECK(fs::is_directory(above / "one/two/three"));
}

TEST_CASE("one relative word names a directory where the process is") {
  const TemporaryDirectory above;
  const fs::path before = fs::current_path();
  fs::current_path(above.path());
  for (const char* const name : {"out", "./dot", "slash/", "gone/../back"}) {
    INFO(name);
    CHECK_NOTHROW([&] {
      AtomicDirectory directory(name);
      write(directory.temporary() / "a");
      directory.commit();
    }());
  }
  fs::current_path(before);
  for (const char* const name : {"out", "dot", "slash", "back"}) {
    INFO(name);
    CHECK(fs::exists(above / name / "a"));
  }
  CHECK(above.names().size() == 4);
}

TEST_CASE("a link to an empty directory stays a link") {
  const TemporaryDirectory above;
  fs::create_directory(above / "real");
  fs::create_directory_symlink("real", above / "link");
  AtomicDirectory directory(above / "link");
  write(directory.temporary() / "a");
  directory.commit();
  CHECK(fs::is_symlink(above / "link"));
  CHECK(fs::exists(above / "real" / "a"));
}

TEST_CASE("what is there already stays as it is, also if it appears meanwhile") {
  const TemporaryDirectory above;
  fs::create_directory(above / "full");
  write(above / "full/a");
  write(above / "file");
  CHECK_THROWS_AS(AtomicDirectory(above / "full"), InvalidArgument);
  CHECK_THROWS_WITH(AtomicDirectory(above / "full"), Contains("one that holds something"));
  CHECK_THROWS_WITH(AtomicDirectory(above / "file"), Contains("a file"));
  {
    AtomicDirectory directory(above / "late");
    fs::create_directory(above / "late");
    write(above / "late/theirs");
    CHECK_THROWS_AS(directory.commit(), InvalidArgument);
  }
  CHECK(fs::exists(above / "late/theirs"));
  CHECK(above.names().size() == 3);
}

TEST_CASE("what a crashed writer left goes with the next one, what a live one writes stays") {
  const TemporaryDirectory above;
  fs::create_directory(above / "new.1-0123456789abcdef.tmp");
  write(above / "new.1-0123456789abcdef.tmp/half");
  fs::create_directory(above / "newer.1-0123456789abcdef.tmp");
  AtomicDirectory live(above / "new");
  CHECK_FALSE(fs::exists(above / "new.1-0123456789abcdef.tmp"));
  AtomicDirectory second(above / "new");
  CHECK(fs::exists(live.temporary()));
  second.commit();
  CHECK(fs::exists(above / "newer.1-0123456789abcdef.tmp"));
}
