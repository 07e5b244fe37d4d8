// SPDX-License-Identifier: Apache-2.0
#include <Eigen/Cholesky>

#include <modicum/tune/project.hpp>

#include "grid.hpp"
#include "support/catch.hpp"
#include "tiny_models.hpp"

using namespace modicum;
using namespace modicum::tune;
using Catch::Matchers::Contains;
namespace fs = std::filesystem;

namespace {

constexpr std::size_t kWidth = 8;
const std::vector<TokenId> kTokens = {1, 5, 7, 3};
const std::string kLayer = "model.layers.0.";

ProtectedText text() {
  return {.tokens = kTokens, .length = 4, .lengths = {4}};
}

ProjectReport run_project(const fs::path& instruct, const fs::path& tuned, const fs::path& to,
                          const ProjectOptions& options = {}, std::size_t threads = 1,
                          const ProtectedText& given = text()) {
  ThreadPool pool(threads);
  return project(instruct.string(), {.model = tuned.string()}, given, to, options, pool);
}

/// What the first layer's attention reads of a token.
linalg::Vector attention_input(const fs::path& model, TokenId token) {
  const Floats embedding = floats_of(model, "model.embed_tokens.weight"),
               norm = floats_of(model, kLayer + "input_layernorm.weight");
  linalg::Vector x(static_cast<Eigen::Index>(kWidth));
  for (std::size_t i = 0; i < kWidth; ++i)
    x[static_cast<Eigen::Index>(i)] = embedding[static_cast<std::size_t>(token) * kWidth + i];
  x /= std::sqrt(x.squaredNorm() / kWidth + Checkpoint::open(model).config().rms_norm_eps);
  for (std::size_t i = 0; i < kWidth; ++i) x[static_cast<Eigen::Index>(i)] *= norm[i];
  return x;
}

/// W + u xᵀ with u = (1, 2, …) / 16.
Floats plus_outer(Floats weight, const linalg::Vector& x) {
  for (std::size_t i = 0; i < weight.size(); ++i) {
    weight[i] += static_cast<float>(static_cast<double>(i / kWidth + 1) / 16 *
                                    x[static_cast<Eigen::Index>(i % kWidth)]);
  }
  return weight;
}

double largest_difference(const Floats& a, const Floats& b) {
  double most = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    most = std::max(most, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
  return most;
}

}  // namespace

TEST_CASE("protected directions are the fewest that hold the energy") {
  linalg::Matrix gram = linalg::Matrix::Zero(4, 4);
  gram.diagonal() << 1, 6, 0, 3;
  for (const auto& [energy, count] :
       {std::pair<double, Eigen::Index>{0, 0}, {0.5, 1}, {0.6, 1}, {0.61, 2}, {0.9, 2}, {0.91, 3}, {1, 3}}) {
    const linalg::Matrix directions = protected_directions(gram, energy);
    INFO("energy " << energy);
    REQUIRE(directions.cols() == count);
    REQUIRE(directions.rows() == 4);
    CHECK((directions.transpose() * directions - linalg::Matrix::Identity(count, count)).norm() < 1e-12);
    if (count == 1) CHECK(std::abs(directions(1, 0)) == Approx(1));
  }
  CHECK(protected_directions(linalg::Matrix::Zero(3, 3), 1).cols() == 0);
}

TEST_CASE("an update along protected inputs vanishes, one outside them stays") {
  const TemporaryDirectory directory;
  const fs::path instruct = write_model(directory / "instruct", 1);
  // The first token of the sequence is not protected.
  std::vector<linalg::Vector> inputs;
  for (const TokenId token : {5, 7, 3}) inputs.push_back(attention_input(instruct, token));
  linalg::Matrix rows(3, static_cast<Eigen::Index>(kWidth));
  for (Eigen::Index i = 0; i < 3; ++i) rows.row(i) = inputs[static_cast<std::size_t>(i)];
  const linalg::Vector first = attention_input(instruct, 1);
  const linalg::Vector outside =
      first - rows.transpose() * (rows * rows.transpose()).ldlt().solve(rows * first);
  REQUIRE(outside.norm() > 0.1);
  const std::string q = kLayer + "self_attn.q_proj.weight", k = kLayer + "self_attn.k_proj.weight",
                    v = kLayer + "self_attn.v_proj.weight";
  const linalg::Vector along = inputs[0] - 0.5 * inputs[2];
  const fs::path tuned = write_changed(instruct, directory / "tuned",
                                       {{q, plus_outer(floats_of(instruct, q), along)},
                                        {k, plus_outer(floats_of(instruct, k), outside)},
                                        {v, plus_outer(floats_of(instruct, v), along + outside)}});
  const ProjectReport report = run_project(instruct, tuned, directory / "out", {.energy = 1});
  const fs::path out = directory / "out";
  CHECK(largest_difference(floats_of(out, q), floats_of(instruct, q)) < 1e-5);
  CHECK(largest_difference(floats_of(out, k), floats_of(tuned, k)) < 1e-5);
  CHECK(largest_difference(floats_of(out, v), plus_outer(floats_of(instruct, v), outside)) < 1e-5);
  CHECK(report.tokens == 3);
  REQUIRE(report.modules.size() == 14);
  for (const ProjectedModule& module : report.modules) {
    INFO(module.module);
    CHECK(module.directions == 3);
    CHECK(module.inputs == (module.module.ends_with("down_proj") ? 12 : 8));
    if (module.module + ".weight" == q) {
      CHECK(module.before > 0.01);
      CHECK(module.after < 1e-5);
      CHECK(module.kept < 1e-5);
    } else if (module.module + ".weight" == k) {
      CHECK(module.before < 1e-3);
      CHECK(module.kept == Approx(1));
    }
  }
  CHECK_THAT(bytes_of(out / "project.json"), Contains("modicum.tune.projected/1"));
}

TEST_CASE("without energy nothing is taken out, and with more there is less left") {
  const TemporaryDirectory directory;
  const fs::path instruct = write_model(directory / "instruct", 1),
                 tuned = write_model(directory / "tuned", 2);
  const ProjectReport none = run_project(instruct, tuned, directory / "none", {.energy = 0});
  for (const std::string& name : Checkpoint::open(tuned).names()) {
    INFO(name);
    CHECK(largest_difference(floats_of(directory / "none", name), floats_of(tuned, name)) < 1e-6);
  }
  const ProjectReport some = run_project(instruct, tuned, directory / "some", {.energy = 0.6});
  const ProjectReport all = run_project(instruct, tuned, directory / "all", {.energy = 1});
  for (std::size_t m = 0; m < none.modules.size(); ++m) {
    INFO(none.modules[m].module);
    CHECK(none.modules[m].directions == 0);
    CHECK(none.modules[m].kept == 1);
    CHECK(some.modules[m].directions > 0);
    CHECK(some.modules[m].directions < all.modules[m].directions);
    CHECK(some.modules[m].kept < 1);
    CHECK(all.modules[m].kept < some.modules[m].kept);
    CHECK(all.modules[m].after < 1e-3 * all.modules[m].before);
    CHECK(all.modules[m].after < some.modules[m].after);
  }
}

TEST_CASE("all other tensors come from the tuned model, or stay where that is asked for") {
  const TemporaryDirectory directory;
  const fs::path instruct = write_model(directory / "instruct", 1),
                 tuned = write_model(directory / "tuned", 2);
  run_project(instruct, tuned, directory / "with");
  run_project(instruct, tuned, directory / "without", {.others = false});
  for (const std::string& name : Checkpoint::open(tuned).names()) {
    if (name.ends_with("_proj.weight")) {
      CHECK(floats_of(directory / "with", name) == floats_of(directory / "without", name));
      continue;
    }
    INFO(name);
    CHECK(largest_difference(floats_of(directory / "with", name), floats_of(tuned, name)) < 1e-6);
    CHECK(floats_of(directory / "without", name) == floats_of(instruct, name));
  }
}

TEST_CASE("what fills sequences up is not protected") {
  const TemporaryDirectory directory;
  const fs::path instruct = write_model(directory / "instruct", 1),
                 tuned = write_model(directory / "tuned", 2);
  const std::vector<TokenId> filled = {1, 5, 7, 3, 9, 9, 2, 4, 9, 9, 9, 9},
                             other = {1, 5, 7, 3, 0, 8, 2, 4, 6, 6, 6, 6};
  const std::vector<std::size_t> lengths = {4, 2};
  const ProjectReport report = run_project(instruct, tuned, directory / "one", {}, 1,
                                           {.tokens = filled, .length = 6, .lengths = lengths});
  run_project(instruct, tuned, directory / "two", {}, 1, {.tokens = other, .length = 6, .lengths = lengths});
  CHECK(report.tokens == 4);
  for (const std::string& name : Checkpoint::open(tuned).names())
    CHECK(floats_of(directory / "one", name) == floats_of(directory / "two", name));
}

TEST_CASE(
    "a projection that was cancelled leaves nothing, and one that is killed goes on to the same bytes") {
  const TemporaryDirectory directory;
  const fs::path instruct = write_model(directory / "instruct", 1),
                 tuned = write_model(directory / "tuned", 2);
  const ProjectOptions options{.merge = {.work = directory / "work", .sync_bytes = 1}};
  run_project(instruct, tuned, directory / "whole", options);
  ThreadPool pool(1);
  fs::path draft;
  const auto stop_at_the_second_layer = [&](std::string_view, std::uint64_t done, std::uint64_t) {
    if (done < 2) return true;
    draft = fs::directory_iterator(directory / "work")->path();
    fs::copy(draft, directory / "killed", fs::copy_options::recursive);
    return false;
  };
  CHECK_THROWS_AS(project(instruct.string(), {.model = tuned.string()}, text(), directory / "out", options,
                          pool, stop_at_the_second_layer),
                  Cancelled);
  CHECK(names_in(directory / "work").empty());
  CHECK_FALSE(fs::exists(directory / "out"));
  fs::rename(directory / "killed", draft);
  const fs::file_time_type before = fs::last_write_time(draft / ".finished");
  CHECK(before != fs::file_time_type{});
  const ProjectReport report = run_project(instruct, tuned, directory / "out", options);
  CHECK(report.modules.size() == 14);
  CHECK(files_in(directory / "out") == files_in(directory / "whole"));
}

TEST_CASE("text and energies that make no sense are refused, and nothing is left behind") {
  const TemporaryDirectory directory;
  const fs::path instruct = write_model(directory / "instruct", 1),
                 tuned = write_model(directory / "tuned", 2);
  const auto run = [&](const ProjectOptions& options, const ProtectedText& given) {
    run_project(instruct, tuned, directory / "out", options, 1, given);
  };
  CHECK_THROWS_WITH(run({.energy = 1.5}, text()), Contains("energy") && Contains("0 to 1"));
  CHECK_THROWS_WITH(run({}, {}), Contains("at least two tokens"));
  CHECK_THROWS_WITH(run({}, {.tokens = kTokens, .length = 4, .lengths = {1}}),
                    Contains("at least two tokens"));
  CHECK_THROWS_WITH(run({}, {.tokens = kTokens, .length = 4, .lengths = {5}}),
                    Contains("at least two tokens"));
  CHECK_THROWS_WITH(run({}, {.tokens = kTokens, .length = 3, .lengths = {3}}),
                    Contains("at least two tokens"));
  const std::vector<TokenId> wrong = {1, 11};
  CHECK_THROWS_WITH(run({}, {.tokens = wrong, .length = 2, .lengths = {2}}), Contains("0 to 10, got 11"));
  const std::vector<TokenId> long_text(33, 1);
  CHECK_THROWS_AS(run({}, {.tokens = long_text, .length = 33, .lengths = {33}}), ContextOverflow);
  CHECK(names_in(directory.path()) == std::set<std::string>{"instruct", "tuned"});
}
