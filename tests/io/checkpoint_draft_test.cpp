// SPDX-License-Identifier: Apache-2.0
#include "../../src/io/checkpoint_draft.hpp"

#include <algorithm>
#include <csignal>

#include <sys/resource.h>
#include <sys/stat.h>

#include <modicum/base/error.hpp>
#include <modicum/io/checkpoint.hpp>

#include "io/checkpoint_fixture.hpp"
#include "support/catch.hpp"

using namespace modicum;
using Catch::Matchers::Contains;
namespace fs = std::filesystem;
using Names = std::vector<std::string>;

namespace {

const std::vector<TensorSpec> kSpecs = {
    {"a", "F32", {2, 1}}, {"none", "F32", {0, 4}}, {"b", "BF16", {2}}, {"c", "U8", {3}}};
const std::vector<std::string> kData = {"aaaabbbb", "", "ccdd", "eee"};

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

CheckpointDraft::Options options(std::string key = "k", std::uint64_t shard_bytes = 1000,
                                 std::uint64_t sync_bytes = 1) {
  return {.kind = "test",
          .key = std::move(key),
          .work = {},
          .shard_bytes = shard_bytes,
          .sync_bytes = sync_bytes};
}

void write(CheckpointDraft& draft, std::size_t first, std::size_t end) {
  for (std::size_t t = first; t < end; ++t) {
    draft.write(t, 0, bytes_of(kData[t]));
    draft.finish(t, "after " + std::to_string(t));
  }
}

Names sorted_names(const fs::path& directory) {
  Names names;
  for (const auto& entry : fs::directory_iterator(directory))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

/// Leaves the folder of a draft with its first `tensors` as a process that was killed would.
void leave_behind(const fs::path& to, std::size_t tensors, const CheckpointDraft::Options& given) {
  fs::path folder;
  const fs::path saved = to.parent_path() / "saved";
  {
    CheckpointDraft draft(to, kSpecs, given);
    write(draft, draft.finished(), tensors);
    folder = draft.directory();
    fs::rename(folder, saved);
  }
  fs::rename(saved, folder);
}

void check_weights(const fs::path& directory) {
  std::ofstream(directory / "config.json") << kConfig;
  const Checkpoint checkpoint = Checkpoint::open(directory);
  CHECK(checkpoint.names() == Names{"a", "b", "c", "none"});
  for (std::size_t t = 0; t < kSpecs.size(); ++t) {
    const auto bytes = checkpoint.bytes(kSpecs[t].name);
    CHECK(std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()) == kData[t]);
  }
}

}  // namespace

TEST_CASE("a draft appears whole with its commit, as one file or as shards") {
  for (const std::uint64_t shard_bytes : {1000u, 8u, 1u}) {
    const TemporaryDirectory above;
    CheckpointDraft draft(above / "deep/out", kSpecs, options("k", shard_bytes));
    CHECK(draft.finished() == 0);
    CHECK(draft.state().empty());
    write(draft, 0, 4);
    std::ofstream(draft.directory() / "more") << "x";
    CHECK_FALSE(fs::exists(above / "deep/out"));
    draft.commit();
    CHECK(sorted_names(above / "deep") == Names{"out"});
    const Names names = sorted_names(above / "deep/out");
    if (shard_bytes == 1000) CHECK(names == Names{"model.safetensors", "more"});
    if (shard_bytes < 1000) {
      CHECK(names.size() == (shard_bytes == 8 ? 4 : 6));
      CHECK(fs::exists(above / "deep/out/model.safetensors.index.json"));
    }
    check_weights(above / "deep/out");
  }
}

TEST_CASE("without a commit nothing of a draft stays") {
  const TemporaryDirectory above;
  {
    CheckpointDraft draft(above / "out", kSpecs, options());
    write(draft, 0, 4);
    CHECK(above.names().size() == 1);
  }
  CHECK(above.names().empty());
}

TEST_CASE("parts of a tensor may come in any order, but not beyond its end") {
  const TemporaryDirectory above;
  CheckpointDraft draft(above / "out", kSpecs, options());
  draft.write(0, 4, bytes_of("bbbb"));
  draft.write(0, 0, bytes_of("aaaa"));
  CHECK_THROWS_AS(draft.write(0, 5, bytes_of("xxxx")), InvalidArgument);
  CHECK_THROWS_AS(draft.write(0, 9, {}), InvalidArgument);
  CHECK_THROWS_AS(draft.write(1, 0, bytes_of("x")), InvalidArgument);
  draft.finish(0);
  write(draft, 1, 4);
  draft.commit();
  check_weights(above / "out");
}

TEST_CASE("a draft whose tensors are not all there is not committed") {
  const TemporaryDirectory above;
  {
    CheckpointDraft draft(above / "out", kSpecs, options());
    write(draft, 0, 3);
    CHECK_THROWS_WITH(draft.commit(), Contains("4 tensors") && Contains("got 3"));
  }
  CHECK(above.names().empty());
}

TEST_CASE("the next draft of one key goes on behind the last note") {
  for (const std::uint64_t shard_bytes : {1000u, 1u}) {
    for (std::size_t tensors = 1; tensors < 4; ++tensors) {
      const TemporaryDirectory above;
      leave_behind(above / "out", tensors, options("k", shard_bytes));
      CHECK(above.names() == Names{".out.test-k"});
      CheckpointDraft draft(above / "out", kSpecs, options("k", shard_bytes));
      // What holds no bytes is noted with what comes next.
      const std::size_t noted = tensors == 2 ? 1 : tensors;
      REQUIRE(draft.finished() == noted);
      CHECK(draft.state() == "after " + std::to_string(noted - 1));
      write(draft, noted, 4);
      draft.commit();
      CHECK(above.names() == Names{"out"});
      check_weights(above / "out");
    }
  }
}

TEST_CASE("without a note yet, or with one that is broken, a draft begins again") {
  const TemporaryDirectory above;
  leave_behind(above / "out", 3, options("k", 1000, 1000));
  {
    CheckpointDraft draft(above / "out", kSpecs, options());
    CHECK(draft.finished() == 0);
  }
  for (const char* const note : {"", "3", "x\n", "5\n", "-1\n", "99999999999999999999\n"}) {
    leave_behind(above / "out", 3, options());
    std::ofstream(above / ".out.test-k/.finished") << note;
    INFO(note);
    const CheckpointDraft draft(above / "out", kSpecs, options());
    CHECK(draft.finished() == 0);
    CHECK(draft.state().empty());
  }
}

TEST_CASE("weights that are not as the draft would have made them are begun again") {
  const TemporaryDirectory above;
  const auto spoil = [&](auto&& change) {
    leave_behind(above / "out", 3, options());
    change(above / ".out.test-k/model.safetensors");
    CheckpointDraft draft(above / "out", kSpecs, options());
    CHECK(draft.finished() == 0);
    write(draft, 0, 4);
    draft.commit();
    check_weights(above / "out");
    fs::remove_all(above / "out");
  };
  spoil([](const fs::path& weights) { fs::resize_file(weights, fs::file_size(weights) - 1); });
  spoil([](const fs::path& weights) { fs::remove(weights); });
  spoil([](const fs::path& weights) {
    std::fstream file(weights, std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(12);
    file.put('#');
  });
  spoil([](const fs::path& weights) {
    fs::remove(weights);
    fs::create_symlink("/dev/null", weights);
  });
}

TEST_CASE("what a draft of another key left is removed, what belongs to another output stays") {
  const TemporaryDirectory above;
  leave_behind(above / "out", 3, options("old"));
  leave_behind(above / "outer", 3, options("old"));
  fs::create_directory(above / ".out.other-old");
  CheckpointDraft draft(above / "out", kSpecs, options("new"));
  CHECK(draft.finished() == 0);
  CHECK(sorted_names(above.path()) == Names{".out.other-old", ".out.test-new", ".outer.test-old"});
}

TEST_CASE("two drafts of one key are not written at once, and a live one of another key stays") {
  const TemporaryDirectory above;
  CheckpointDraft first(above / "out", kSpecs, options());
  write(first, 0, 2);
  CHECK_THROWS_WITH(CheckpointDraft(above / "out", kSpecs, options()), Contains("another process at work"));
  {
    const CheckpointDraft second(above / "out", kSpecs, options("other"));
    CHECK(fs::exists(first.directory()));
  }
  write(first, 2, 4);
  first.commit();
  check_weights(above / "out");
}

TEST_CASE("an output that is there stays, also if it appears meanwhile") {
  const TemporaryDirectory above;
  fs::create_directory(above / "full");
  std::ofstream(above / "full/a") << "x";
  CHECK_THROWS_AS(CheckpointDraft(above / "full", kSpecs, options()), InvalidArgument);
  {
    CheckpointDraft draft(above / "late", kSpecs, options());
    write(draft, 0, 4);
    fs::create_directory(above / "late");
    std::ofstream(above / "late/theirs") << "x";
    CHECK_THROWS_AS(draft.commit(), InvalidArgument);
  }
  CHECK(sorted_names(above / "late") == Names{"theirs"});
  CHECK(sorted_names(above.path()) == Names{"full", "late"});
  fs::create_directory(above / "empty");
  CheckpointDraft draft(above / "empty", kSpecs, options());
  write(draft, 0, 4);
  draft.commit();
  check_weights(above / "empty");
}

TEST_CASE("specs that no file could hold are refused before anything is made") {
  const TemporaryDirectory above;
  CHECK_THROWS_AS(CheckpointDraft(above / "out", {{"a", "F32", {1}}, {"a", "F32", {1}}}, options()),
                  InvalidArgument);
  CHECK_THROWS_AS(CheckpointDraft(above / "out", {{"a", "F33", {1}}}, options()), InvalidArgument);
  CHECK(above.names().empty());
}

TEST_CASE("a disk that has no room is an IoError before any work, and nothing stays") {
  const TemporaryDirectory above;
  rlimit before{};
  ::getrlimit(RLIMIT_FSIZE, &before);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{4096, before.rlim_max};
  ::setrlimit(RLIMIT_FSIZE, &small);
  std::string told;
  try {
    CheckpointDraft(above / "out", {{"a", "F32", {5000}}}, options());
  } catch (const IoError& error) {
    told = error.what();
  }
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  CHECK_THAT(told, Contains("making room of") && Contains("free some space"));
  CHECK(above.names().empty());
}

TEST_CASE("a folder that cannot be made is an IoError by name") {
  const TemporaryDirectory above;
  std::ofstream(above / "file") << "x";
  CHECK_THROWS_AS(CheckpointDraft(above / "file/out", kSpecs, options()), IoError);
  CHECK_THROWS_WITH(CheckpointDraft(above / "file/out", kSpecs, options()), Contains("file"));
  CHECK(above.names() == Names{"file"});
}

TEST_CASE("files of a draft are for all to read, whatever the umask") {
  const TemporaryDirectory above;
  const mode_t mask = ::umask(0077);
  CheckpointDraft draft(above / "out", kSpecs, options());
  ::umask(mask);
  write(draft, 0, 4);
  draft.commit();
  const fs::perms mode = fs::status(above / "out/model.safetensors").permissions();
  CHECK((mode & fs::perms::others_read) != fs::perms::none);
}
