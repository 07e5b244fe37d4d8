// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"
#include "tiny_models.hpp"

using namespace modicum;
using namespace modicum::tune;
namespace fs = std::filesystem;

namespace {

/// A merge to `to` that is stopped at `stop` of its progress, with what was on disk in that moment put back:
/// as a process that was killed there would leave it.
void kill_at(const MergePlan& plan, const fs::path& to, double stop, const MergeOptions& options) {
  const fs::path hidden = to.parent_path() / "killed";
  fs::path draft;
  const auto progress = [&](std::string_view, std::uint64_t done, std::uint64_t total) {
    if (static_cast<double>(done) < stop * static_cast<double>(total)) return true;
    for (const auto& entry : fs::directory_iterator(to.parent_path())) {
      if (entry.path().filename().string().starts_with("." + to.filename().string())) draft = entry.path();
    }
    fs::copy(draft, hidden, fs::copy_options::recursive);
    return false;
  };
  ThreadPool pool(2);
  CHECK_THROWS_AS(merge(plan, to, options, pool, progress), Cancelled);
  CHECK_FALSE(fs::exists(draft));
  fs::rename(hidden, draft);
}

}  // namespace

TEST_CASE("a merge that is cancelled leaves nothing behind, at whatever moment") {
  const TemporaryDirectory directory;
  const fs::path base = write_model(directory / "base", 1), one = write_model(directory / "one", 2);
  const MergePlan plan = merge_of(Method::ties, base, {one});
  ThreadPool pool(2);
  for (int calls = 0;; ++calls) {
    int left = calls;
    try {
      merge(plan, directory / "out", {}, pool,
            [&](std::string_view, std::uint64_t, std::uint64_t) { return left-- > 0; });
    } catch (const Cancelled&) {
      REQUIRE(names_in(directory.path()) == std::set<std::string>{"base", "one"});
      continue;
    }
    CHECK(calls > 10);
    break;
  }
  CHECK(fs::exists(directory / "out" / "merge.json"));
}

TEST_CASE("a merge that was killed goes on to the same bytes and the same report") {
  const TemporaryDirectory directory;
  const fs::path base = write_model(directory / "base", 1), one = write_model(directory / "one", 2);
  for (const Method method : {Method::dare_linear, Method::ties}) {
    for (const std::uint64_t shard_bytes : {std::uint64_t{0}, std::uint64_t{1000}}) {
      MergePlan plan = merge_of(method, base, {one});
      plan.models[0].density = 0.5;
      if (method == Method::ties) plan.definition = Definition::paper;
      // Every tensor is noted.
      const MergeOptions options{.shard_bytes = shard_bytes, .sync_bytes = 1};
      run_merge(plan, directory / "whole", 1, options);
      std::size_t least = 0;
      for (const double stop : {0.0, 0.4, 0.9, 1.0}) {
        kill_at(plan, directory / "out", stop, options);
        const MergeReport report = run_merge(plan, directory / "out", 2, options);
        INFO(name_of(method) << ", killed at " << stop);
        CHECK(report.resumed >= least);
        CHECK((report.resumed > 0) == (stop > 0));
        least = report.resumed;
        CHECK(files_in(directory / "out") == files_in(directory / "whole"));
        fs::remove_all(directory / "out");
      }
      CHECK(least + 1 == model_specs().size());  // the last is not noted: what follows is `commit`
      fs::remove_all(directory / "whole");
    }
  }
}

TEST_CASE("what a merge of another plan or of other weights left is not gone on with") {
  const TemporaryDirectory directory;
  const fs::path base = write_model(directory / "base", 1), one = write_model(directory / "one", 2);
  const MergePlan plan = merge_of(Method::task_arithmetic, base, {one});
  MergePlan other = plan;
  other.lambda = 0.5;
  kill_at(other, directory / "out", 0.8, {.sync_bytes = 1});
  CHECK(run_merge(plan, directory / "out").resumed == 0);
  CHECK(names_in(directory.path()) == std::set<std::string>{"base", "one", "out"});
  run_merge(plan, directory / "again");
  CHECK(files_in(directory / "out") == files_in(directory / "again"));
  kill_at(plan, directory / "new", 0.8, {.sync_bytes = 1});
  fs::remove_all(one);
  write_model(directory / "one", 3);
  CHECK(run_merge(plan, directory / "new").resumed == 0);
  CHECK(files_in(directory / "new") != files_in(directory / "again"));
}

TEST_CASE("an unfinished result may be kept elsewhere") {
  const TemporaryDirectory directory;
  const fs::path base = write_model(directory / "base", 1), one = write_model(directory / "one", 2);
  const MergePlan plan = merge_of(Method::task_arithmetic, base, {one});
  bool elsewhere = false;
  ThreadPool pool(1);
  merge(plan, directory / "out", {.work = directory / "work"}, pool,
        [&](std::string_view, std::uint64_t, std::uint64_t) {
          elsewhere = elsewhere || names_in(directory / "work").size() == 1;
          return true;
        });
  CHECK(elsewhere);
  CHECK(names_in(directory / "work").empty());
  CHECK(fs::exists(directory / "out" / "merge.json"));
}
