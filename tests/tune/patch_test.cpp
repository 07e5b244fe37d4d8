// SPDX-License-Identifier: Apache-2.0
#include <modicum/tune/patch.hpp>

#include "grid.hpp"
#include "support/catch.hpp"
#include "tiny_models.hpp"

using namespace modicum;
using namespace modicum::tune;
using Catch::Matchers::Contains;
namespace fs = std::filesystem;

namespace {

linalg::Matrix random_matrix(Eigen::Index rows, Eigen::Index cols, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  linalg::Matrix out(rows, cols);
  for (Eigen::Index c = 0; c < cols; ++c) {
    for (Eigen::Index r = 0; r < rows; ++r) out(r, c) = normal(random);
  }
  return out;
}

PatchReport patch(const MergePlan& plan, const fs::path& to, const PatchOptions& options,
                  std::size_t threads = 1) {
  ThreadPool pool(threads);
  return write_patch(plan, to, options, pool);
}

/// A model whose matrices alone differ from another's.
fs::path write_tuned(const fs::path& from, const fs::path& to, std::uint32_t seed) {
  std::map<std::string, Floats> changed;
  const Checkpoint model = Checkpoint::open(from);
  for (const std::string& name : model.names()) {
    if (!name.ends_with("_proj.weight")) continue;
    const Floats old = floats_of(model, name), change = grid(old.size(), seed++);
    changed[name] = old;
    for (std::size_t i = 0; i < old.size(); ++i) changed[name][i] += change[i] / 64.0f;
  }
  return write_changed(from, to, changed);
}

}  // namespace

TEST_CASE("factors of full rank give a matrix back, and fewer are as far off as the values that they lack") {
  for (const auto& [rows, cols] : {std::pair<Eigen::Index, Eigen::Index>{6, 9}, {9, 6}, {7, 7}, {1, 5}}) {
    const linalg::Matrix matrix = random_matrix(rows, cols, 1);
    const auto full = static_cast<std::size_t>(std::min(rows, cols));
    double last = 2 * matrix.norm();
    for (std::size_t rank = 1; rank <= full + 2; ++rank) {
      const Factors factors = factorize(matrix, rank);
      const auto kept = static_cast<Eigen::Index>(std::min(rank, full));
      REQUIRE(factors.b.cols() == kept);
      REQUIRE(factors.a.rows() == kept);
      REQUIRE(factors.singular_values.size() == static_cast<Eigen::Index>(full));
      const double error = (matrix - factors.b * factors.a).norm();
      const double lost = factors.singular_values.tail(factors.singular_values.size() - kept).norm();
      CHECK(error == Approx(lost).margin(1e-9));
      if (rank <= full) CHECK(error < last);
      if (rank >= full) CHECK(error < 1e-9);
      last = error;
      for (Eigen::Index k = 0; k < kept; ++k) {  // the roots of the values are shared alike
        CHECK(factors.b.col(k).norm() == Approx(std::sqrt(factors.singular_values[k])));
        CHECK(factors.a.row(k).norm() == Approx(std::sqrt(factors.singular_values[k])));
      }
    }
  }
}

TEST_CASE("factors of nothing are nothing, and those of a product have its rank") {
  const Factors none = factorize(linalg::Matrix::Zero(4, 6), 3);
  CHECK(none.b.norm() == 0);
  CHECK(none.a.norm() == 0);
  const linalg::Matrix product = random_matrix(8, 2, 1) * random_matrix(2, 5, 2);
  const Factors two = factorize(product, 2);
  CHECK((product - two.b * two.a).norm() < 1e-7 * product.norm());
}

TEST_CASE("a patch of full rank, applied to the base, is the tuned model") {
  const TemporaryDirectory directory;
  const fs::path base = write_model(directory / "base", 1), tuned = write_model(directory / "tuned", 2);
  const MergePlan plan = merge_of(Method::task_arithmetic, base, {tuned});
  const PatchReport report = patch(plan, directory / "patch", {.rank = 100}, 2);
  CHECK(report.modules.size() == 14);
  CHECK(report.whole.size() == 7);  // norms, embedding and head
  CHECK(report.dropped.empty());
  MergePlan applied = merge_of(Method::linear, "", {base});
  applied.models[0].adapter = (directory / "patch").string();
  run_merge(applied, directory / "out");
  const Checkpoint out = Checkpoint::open(directory / "out"), expected = Checkpoint::open(tuned);
  for (const std::string& name : expected.names()) {
    INFO(name);
    const Floats got = floats_of(out, name), wanted = floats_of(expected, name);
    for (std::size_t i = 0; i < got.size(); ++i) REQUIRE(std::abs(got[i] - wanted[i]) < 1e-5f);
  }
}

TEST_CASE("errors fall as ranks rise, and a small error is met with no more factors than it takes") {
  const TemporaryDirectory directory;
  const fs::path base = write_model(directory / "base", 1), tuned = write_tuned(base, directory / "tuned", 7);
  const MergePlan plan = merge_of(Method::task_arithmetic, base, {tuned});
  const PatchReport report = patch(plan, directory / "patch", {.rank = 4});
  REQUIRE(report.modules.size() == 14);
  CHECK(report.whole.empty());
  for (const PatchedModule& module : report.modules) {
    INFO(module.module);
    CHECK(module.rank == 4);
    REQUIRE(module.errors.size() == 3);  // of 1, 2 and 4
    CHECK(module.errors[0] > module.errors[1]);
    CHECK(module.errors[1] >= module.errors[2]);
    CHECK(module.size > 0);
  }
  const PatchReport exact = patch(plan, directory / "exact", {.rank = 8, .error = 0.5});
  std::set<std::size_t> ranks;
  for (std::size_t m = 0; m < exact.modules.size(); ++m) {
    const PatchedModule& module = exact.modules[m];
    INFO(module.module);
    ranks.insert(module.rank);
    CHECK(module.errors.back() <= 0.5);
    // One factor fewer would not have done.
    linalg::Matrix change(static_cast<Eigen::Index>(8), static_cast<Eigen::Index>(12));
    if (!module.module.ends_with("down_proj")) continue;
    const Floats delta =
        minus(floats_of(tuned, module.module + ".weight"), floats_of(base, module.module + ".weight"));
    for (Eigen::Index i = 0; i < change.size(); ++i)
      change(i / 12, i % 12) = delta[static_cast<std::size_t>(i)];
    const Factors fewer = factorize(change, module.rank - 1);
    CHECK((change - fewer.b * fewer.a).norm() > 0.5 * change.norm());
  }
  CHECK(*ranks.rbegin() < 8);
}

TEST_CASE("ranks and alphas that differ between modules are read back as they were meant") {
  const TemporaryDirectory directory;
  const fs::path base = write_model(directory / "base", 1), tuned = write_tuned(base, directory / "tuned", 7);
  // One matrix differs by one outer product: its rank is 1, the others' are full.
  const std::string up = "model.layers.0.mlp.up_proj";
  Floats simple = floats_of(base, up + ".weight");
  for (std::size_t i = 0; i < simple.size(); ++i)
    simple[i] += static_cast<float>((i / 8 + 1) * (i % 8 + 1)) / 64;
  const fs::path mixed = write_changed(tuned, directory / "mixed", {{up + ".weight", simple}});
  patch(merge_of(Method::task_arithmetic, base, {mixed}), directory / "patch", {.rank = 8, .error = 1e-6});
  MergePlan applied = merge_of(Method::linear, "", {base});
  applied.models[0].adapter = (directory / "patch").string();
  run_merge(applied, directory / "out");
  for (const std::string& name : Checkpoint::open(mixed).names()) {
    INFO(name);
    const Floats got = floats_of(directory / "out", name), wanted = floats_of(mixed, name);
    for (std::size_t i = 0; i < got.size(); ++i) REQUIRE(std::abs(got[i] - wanted[i]) < 1e-5f);
  }
  CHECK_THAT(bytes_of(directory / "patch" / "adapter_config.json"), Contains("\"" + up + "\": 1"));
}

TEST_CASE("changes that two factors cannot hold come along whole, or are told to be dropped") {
  const TemporaryDirectory directory;
  const fs::path base = write_model(directory / "base", 1);
  Floats norm = floats_of(base, "model.norm.weight");
  norm[2] += 0.5f;
  const fs::path tuned = write_changed(base, directory / "tuned", {{"model.norm.weight", norm}});
  const MergePlan plan = merge_of(Method::task_arithmetic, base, {tuned});
  const PatchReport saved = patch(plan, directory / "saved", {});
  CHECK(saved.modules.empty());
  CHECK(saved.whole == std::vector<std::string>{"model.norm.weight"});
  const PatchReport dropped = patch(plan, directory / "dropped", {.others = OtherTensors::drop});
  CHECK(dropped.whole.empty());
  CHECK(dropped.dropped == std::vector<std::string>{"model.norm.weight"});
}

TEST_CASE("what an adapter has no place for is refused, and nothing is left behind") {
  const TemporaryDirectory directory;
  const std::string json = model_json(R"(,"attention_bias":true)");
  const fs::path base = write_model(directory / "base", 1, "F32", json),
                 tuned = write_model(directory / "tuned", 2, "F32", json);
  MergePlan plan = merge_of(Method::task_arithmetic, base, {tuned});
  CHECK_THROWS_AS(patch(plan, directory / "out", {}), Unsupported);
  CHECK_THROWS_WITH(patch(plan, directory / "out", {}), Contains(".bias") && Contains("others: drop"));
  CHECK_THROWS_WITH(patch(plan, directory / "out", {.rank = 0}), Contains("at least 1"));
  plan.lambda = 1e30;
  plan.models[0].weight = 1e30;
  CHECK_THROWS_AS(patch(plan, directory / "out", {.others = OtherTensors::drop}), FormatError);
  plan.models[0].weight = 1e-20;  // 1e10: beyond f16
  CHECK_THROWS_AS(patch(plan, directory / "out", {.dtype = DType::f16, .others = OtherTensors::drop}),
                  FormatError);
  CHECK(names_in(directory.path()) == std::set<std::string>{"base", "tuned"});
}
