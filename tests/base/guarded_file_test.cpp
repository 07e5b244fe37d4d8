// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <modicum/base/mapped_file.hpp>

#include "base/temporary_directory.hpp"
#include "support/catch.hpp"

using namespace modicum;

namespace {

/// Bytes of the file that hold `content`: reads all of them.
std::size_t count(const MappedFile& file, char content) {
  return static_cast<std::size_t>(
      std::count(file.bytes().begin(), file.bytes().end(), static_cast<std::byte>(content)));
}

}  // namespace

TEST_CASE("a guarded file shows the bytes of the file and knows nothing amiss") {
  const TemporaryDirectory directory;
  const MappedFile file(directory.write("a", "some bytes"), Guard::yes);
  CHECK(count(file, 's') == 2);
  CHECK_FALSE(file.damaged());
  CHECK(file.unchanged());
  CHECK(file.identity() == FileIdentity::of(directory / "a"));
  const MappedFile empty(directory.write("b", ""), Guard::yes);
  CHECK(empty.bytes().empty());
  CHECK_FALSE(empty.guarded());
  CHECK(empty.unchanged());
  CHECK(MappedFile().unchanged());
  CHECK_FALSE(MappedFile().damaged());
}

TEST_CASE("a rename over its path and other links leave a guarded file unchanged, writing does not") {
  const TemporaryDirectory directory;
  const MappedFile file(directory.write("a", "old"), Guard::yes);
  std::filesystem::create_hard_link(directory / "a", directory / "c");
  std::filesystem::rename(directory.write("b", "new"), directory / "a");
  CHECK(file.unchanged());
  CHECK(file.identity() != FileIdentity::of(directory / "a"));
  directory.write("c", "odd");
  std::filesystem::last_write_time(directory / "c", std::filesystem::file_time_type());
  CHECK_FALSE(file.unchanged());
  CHECK_FALSE(file.damaged());
  CHECK(FileIdentity::of(directory / "none") == FileIdentity{});
}

TEST_CASE("a plain file takes no guard and says nothing about changes") {
  const TemporaryDirectory directory;
  const MappedFile file(directory.write("a", "old"));
  CHECK_FALSE(file.guarded());
  std::filesystem::resize_file(directory / "a", 1);
  CHECK(file.unchanged());
}

#if defined(__linux__) && defined(__LP64__)

namespace {

constexpr std::size_t kPages = 64;

std::size_t page() {
  return static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
}

std::filesystem::path write_pages(const TemporaryDirectory& directory, std::string_view name = "a") {
  return directory.write(name, std::string(kPages * page(), 'x'));
}

/// What a truncated mapping of nobody's gives: SIGBUS.
void fault() {
  MappedFile file;
  {
    const TemporaryDirectory directory;
    file = MappedFile(write_pages(directory));
    std::filesystem::resize_file(directory / "a", 0);
  }
  *static_cast<const volatile std::byte*>(file.bytes().data());
}

/// The wait status of this program run again for one hidden test: a process in which no guard was set before.
int status_of(const char* test) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::execl("/proc/self/exe", "modicum_test_base", test, static_cast<char*>(nullptr));
    ::_exit(99);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return status;
}

void exit_with_41(int) {
  ::_exit(41);
}

void exit_with_42(int, siginfo_t* info, void*) {
  ::_exit(info->si_addr != nullptr ? 42 : 1);
}

void set_handler(void (*handler)(int)) {
  struct sigaction action{};
  action.sa_handler = handler;
  ::sigaction(SIGBUS, &action, nullptr);
}

/// A guarded file that was truncated and read, so that the handler has been at work.
void use_guard() {
  const TemporaryDirectory directory;
  const MappedFile file(write_pages(directory, "guarded"), Guard::yes);
  std::filesystem::resize_file(directory / "guarded", page());
  if (count(file, '\0') != (kPages - 1) * page() || !file.damaged()) ::_exit(2);
}

}  // namespace

TEST_CASE("a guarded file that is truncated while it is read gives zeros and says so") {
  const TemporaryDirectory directory;
  const MappedFile file(write_pages(directory), Guard::yes);
  const MappedFile copy = file;
  const MappedFile other(write_pages(directory, "b"), Guard::yes);
  REQUIRE(file.guarded());
  std::size_t kept = 0;
  for (std::size_t i = 0; i < file.bytes().size(); ++i) {
    if (i == 10 * page()) std::filesystem::resize_file(directory / "a", 20 * page());
    kept += file.bytes()[i] == std::byte{'x'} ? 1 : 0;
    if (i + 1 == 20 * page()) {
      CHECK_FALSE(file.damaged());
      CHECK_FALSE(file.unchanged());
    }
  }
  CHECK(kept == 20 * page());
  CHECK(file.damaged());
  CHECK(copy.damaged());
  CHECK_FALSE(other.damaged());
  CHECK(count(other, 'x') == kPages * page());
}

TEST_CASE("what was lost stays lost, also where the file grows again") {
  const TemporaryDirectory directory;
  const MappedFile file(write_pages(directory), Guard::yes);
  std::filesystem::resize_file(directory / "a", 0);
  CHECK(file.bytes()[30 * page() + 5] == std::byte{0});
  write_pages(directory);
  CHECK(file.bytes()[30 * page() + 5] == std::byte{0});
  CHECK(file.bytes()[29 * page()] == std::byte{'x'});
  CHECK(file.damaged());
  CHECK_FALSE(file.unchanged());
}

TEST_CASE("an end within a page is no damage that a read meets, but a change") {
  const TemporaryDirectory directory;
  const MappedFile file(directory.write("a", "some bytes"), Guard::yes);
  std::filesystem::resize_file(directory / "a", 4);
  CHECK(count(file, '\0') == 6);
  CHECK_FALSE(file.damaged());
  CHECK_FALSE(file.unchanged());
}

TEST_CASE("threads that read one truncated file all come through") {
  const TemporaryDirectory directory;
  const MappedFile file(write_pages(directory), Guard::yes);
  std::filesystem::resize_file(directory / "a", 0);
  std::vector<std::thread> threads;
  std::atomic<std::size_t> zeros{0};
  for (int i = 0; i < 4; ++i) threads.emplace_back([&] { zeros += count(file, '\0'); });
  for (std::thread& thread : threads) thread.join();
  CHECK(zeros == 4 * kPages * page());
  CHECK(file.damaged());
}

TEST_CASE("threads open, truncate, read and close guarded files without knowing of each other") {
  const TemporaryDirectory directory;
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      for (int round = 0; round < 50; ++round) {
        const bool truncates = (round + i) % 2 == 0;
        const std::string name = std::to_string(i);
        const MappedFile file(write_pages(directory, name), Guard::yes);
        if (truncates) std::filesystem::resize_file(directory / name, page());
        if (count(file, 'x') != (truncates ? 1 : kPages) * page()) ++wrong;
        if (file.damaged() != truncates || !file.guarded()) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
}

TEST_CASE("beyond as many guards as there are, files are plain ones until another is closed") {
  const TemporaryDirectory directory;
  const auto path = directory.write("a", "x");
  std::vector<MappedFile> files;
  for (int i = 0; i < 512; ++i) files.emplace_back(path, Guard::yes);
  CHECK(std::ranges::all_of(files, [](const MappedFile& file) { return file.guarded(); }));
  const MappedFile beyond(path, Guard::yes);
  CHECK_FALSE(beyond.guarded());
  CHECK(count(beyond, 'x') == 1);
  CHECK(beyond.unchanged());
  files.pop_back();
  CHECK(MappedFile(path, Guard::yes).guarded());
  std::filesystem::resize_file(path, 0);
  CHECK_FALSE(beyond.unchanged());
}

TEST_CASE("a fault outside of guarded files reaches the handler that was there before") {
  const int status = status_of("[former]");
  REQUIRE(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 42);
}

TEST_CASE("a signal that somebody sends reaches the handler that was there before") {
  const int status = status_of("[sent]");
  REQUIRE(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 41);
}

TEST_CASE("where there was no handler, a fault or signal that is not ours ends the process as ever") {
  for (const char* test : {"[default-fault]", "[default-sent]", "[ignored-fault]"}) {
    INFO(test);
    const int status = status_of(test);
    REQUIRE(WIFSIGNALED(status));
    CHECK(WTERMSIG(status) == SIGBUS);
  }
}

TEST_CASE("where the signal was ignored, a sent one still is") {
  const int status = status_of("[ignored-sent]");
  REQUIRE(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 43);
}

TEST_CASE("child: a foreign fault with a former handler", "[.][former]") {
  struct sigaction action{};
  action.sa_sigaction = exit_with_42;
  action.sa_flags = SA_SIGINFO;
  ::sigaction(SIGBUS, &action, nullptr);
  use_guard();
  fault();
}

TEST_CASE("child: a sent signal with a former handler", "[.][sent]") {
  set_handler(exit_with_41);
  use_guard();
  ::kill(::getpid(), SIGBUS);
}

TEST_CASE("child: a foreign fault without a former handler", "[.][default-fault]") {
  set_handler(SIG_DFL);
  use_guard();
  fault();
}

TEST_CASE("child: a sent signal without a former handler", "[.][default-sent]") {
  set_handler(SIG_DFL);
  use_guard();
  ::kill(::getpid(), SIGBUS);
}

TEST_CASE("child: a foreign fault where the signal was ignored", "[.][ignored-fault]") {
  set_handler(SIG_IGN);
  use_guard();
  fault();
}

TEST_CASE("child: a sent signal where it was ignored", "[.][ignored-sent]") {
  set_handler(SIG_IGN);
  use_guard();
  ::kill(::getpid(), SIGBUS);
  ::_exit(43);
}

#endif
