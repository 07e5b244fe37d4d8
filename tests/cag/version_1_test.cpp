// SPDX-License-Identifier: Apache-2.0
// A file of version 1, as modicum 0.1.0 wrote it, stays readable for ever. Never write these files anew.
#include <filesystem>

#include <modicum/cag/build.hpp>
#include <modicum/ops/isa.hpp>

#include "cag/desk.hpp"
#include "support/catch.hpp"

using namespace modicum;

namespace {

const std::filesystem::path kFolder = MODICUM_VERSION_1;

}  // namespace

TEST_CASE("a knowledge file of version 1 answers as it did when it was written") {
  ops::force_isa(ops::Isa::plain);
  const Model model = Model::load(kFolder / "model");
  const auto knowledge = cag::Knowledge::open(kFolder / "knowledge.kv", model);
  REQUIRE(knowledge.file().manifest().version == 1);
  REQUIRE(knowledge.size() == 168);
  REQUIRE(knowledge.file().manifest().documents[1].name == "hours.txt");
  REQUIRE(knowledge.file().document_text(0).starts_with("# Fees"));
  const auto answer = knowledge.ask("What does the year card cost?", {.max_new_tokens = 8});
  REQUIRE(answer.ids == std::vector<TokenId>{94, 57, 178, 94, 50, 94, 162, 160});
  REQUIRE(cag::verify_deep(model, kFolder / "knowledge.kv").positions > 0);
  ops::force_isa(ops::supported_isas().back());
}

TEST_CASE("an update turns a file of version 1 into what a fresh build gives") {
  const TemporaryDirectory folder;
  std::filesystem::copy(kFolder / "knowledge.kv", folder / "a.kv");
  const Model model = Model::load(kFolder / "model");
  const std::vector<std::string> gone{"hours.txt"};
  const auto changes = cag::update(model, folder / "a.kv", {}, gone);
  REQUIRE(changes.removed == gone);
  REQUIRE(changes.computed_tokens < changes.tokens);
  const auto updated = cag::Knowledge::open(folder / "a.kv", model);
  REQUIRE(updated.file().manifest().version == cag::kFormatVersion);
  REQUIRE(updated.file().manifest().documents.size() == 1);
}
