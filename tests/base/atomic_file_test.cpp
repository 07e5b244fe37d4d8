// SPDX-License-Identifier: Apache-2.0
#include <functional>
#include <string_view>

#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <modicum/base/atomic_file.hpp>
#include <modicum/base/error.hpp>

#include "base/temporary_directory.hpp"
#include "support/catch.hpp"

using namespace modicum;
using Catch::Matchers::Contains;

namespace {

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

void write_file(const std::filesystem::path& path, std::string_view text, unsigned mode = 0644) {
  AtomicFile file(path, mode);
  file.write(bytes_of(text));
  file.commit();
}

/// Runs `body` in a child process that ends without destructors; true where the child said so.
bool in_child(const std::function<bool()>& body) {
  const pid_t child = ::fork();
  if (child == 0) {
    bool good = false;
    try {
      good = body();
    } catch (...) {
    }
    ::_exit(good ? 0 : 1);
  }
  int status = 1;
  return ::waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace

TEST_CASE("an atomic file appears with its commit, and nothing else stays") {
  const TemporaryDirectory directory;
  AtomicFile file(directory / "a");
  file.write(bytes_of("12345"));
  file.write(bytes_of("678"));
  file.write_at(1, bytes_of("xy"));
  CHECK(file.size() == 8);
  CHECK_FALSE(std::filesystem::exists(directory / "a"));
  file.commit();
  CHECK(directory.read("a") == "1xy45678");
  CHECK(directory.names() == std::vector<std::string>{"a"});
  CHECK_THROWS_AS(file.write(bytes_of("9")), InvalidArgument);
  CHECK_THROWS_AS(file.commit(), InvalidArgument);
}

TEST_CASE("bytes that were not written yet cannot be overwritten") {
  const TemporaryDirectory directory;
  AtomicFile file(directory / "a");
  file.write(bytes_of("12345"));
  CHECK_THROWS_AS(file.write_at(4, bytes_of("xy")), InvalidArgument);
  CHECK_THROWS_AS(file.write_at(UINT64_MAX, bytes_of("xy")), InvalidArgument);
  file.write_at(5, {});
}

TEST_CASE("without a commit the old file stays and the temporary goes") {
  const TemporaryDirectory directory;
  directory.write("a", "old");
  {
    AtomicFile file(directory / "a");
    file.write(bytes_of("new"));
    CHECK(directory.names().size() == 2);
  }
  CHECK(directory.read("a") == "old");
  CHECK(directory.names().size() == 1);
}

TEST_CASE("the mode is as given, whatever the umask says") {
  const TemporaryDirectory directory;
  const mode_t old = ::umask(0077);
  write_file(directory / "open", "x", 0666);
  ::umask(0);
  write_file(directory / "closed", "x", 0600);
  ::umask(old);
  struct stat status{};
  REQUIRE(::stat((directory / "open").c_str(), &status) == 0);
  CHECK((status.st_mode & 0777) == 0666);
  REQUIRE(::stat((directory / "closed").c_str(), &status) == 0);
  CHECK((status.st_mode & 0777) == 0600);
}

TEST_CASE("of two writers at once the last to commit wins, and neither disturbs the other") {
  const TemporaryDirectory directory;
  AtomicFile first(directory / "a");
  first.write(bytes_of("first"));
  AtomicFile second(directory / "a");
  second.write(bytes_of("second"));
  second.commit();
  CHECK(directory.read("a") == "second");
  first.commit();
  CHECK(directory.read("a") == "first");
  CHECK(directory.names().size() == 1);
}

TEST_CASE("what a crashed writer left goes with the next writer, and only that") {
  const TemporaryDirectory directory;
  directory.write("a.1-0123456789abcdef", "no .tmp");
  directory.write("a.x-0123456789abcdef.tmp", "no process id");
  directory.write("a.1-0123.tmp", "no random part");
  directory.write("b.1-0123456789abcdef.tmp", "another file's");
  REQUIRE(in_child([&]() -> bool {
    AtomicFile file(directory / "a");
    file.write(bytes_of("half"));
    ::_exit(0);
  }));
  CHECK(directory.names().size() == 5);
  write_file(directory / "a", "whole");
  CHECK(directory.read("a") == "whole");
  CHECK(directory.names().size() == 5);  // the four, and a itself
}

TEST_CASE("a writer in another process keeps its temporary") {
  const TemporaryDirectory directory;
  AtomicFile file(directory / "a");
  file.write(bytes_of("ours"));
  REQUIRE(in_child([&] {
    write_file(directory / "a", "theirs");
    return true;
  }));
  CHECK(directory.read("a") == "theirs");
  file.commit();
  CHECK(directory.read("a") == "ours");
}

TEST_CASE("a full disk is an IoError that counts the bytes and leaves the old file") {
  const TemporaryDirectory directory;
  directory.write("a", "old");
  CHECK(in_child([&] {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{1000, 1000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    AtomicFile file(directory / "a");
    file.write(bytes_of(std::string(600, 'x')));
    try {
      file.write(bytes_of(std::string(600, 'y')));
    } catch (const IoError& error) {
      const std::string text = error.what();
      const bool counts = text.find("bytes 600 to 1200, of which 400 could be written") != std::string::npos;
      return counts && text.find("as it was") != std::string::npos && file.size() == 600;
    }
    return false;
  }));
  CHECK(directory.read("a") == "old");
}

TEST_CASE("a directory that is missing or in the way is an IoError") {
  const TemporaryDirectory directory;
  CHECK_THROWS_WITH(AtomicFile(directory / "none" / "a"), Contains("none/a") && Contains("No such file"));
  CHECK_THROWS_AS(AtomicFile(directory.path() / ""), InvalidArgument);
  std::filesystem::create_directory(directory / "d");
  AtomicFile file(directory / "d");
  CHECK_THROWS_WITH(file.commit(), Contains("Is a directory"));
}

TEST_CASE("long names leave room for the temporary's own") {
  const TemporaryDirectory directory;
  const std::string name(255, 'n');
  write_file(directory / name, "x");
  CHECK(directory.read(name) == "x");
}

TEST_CASE("a symbolic link is replaced, not what it points to") {
  const TemporaryDirectory directory;
  directory.write("target", "old");
  std::filesystem::create_symlink("target", directory / "link");
  write_file(directory / "link", "new");
  CHECK(directory.read("target") == "old");
  CHECK(directory.read("link") == "new");
  CHECK_FALSE(std::filesystem::is_symlink(directory / "link"));
}
