// SPDX-License-Identifier: Apache-2.0
#include <fstream>

#include <unistd.h>

#include "cag/desk.hpp"
#include "support/catch.hpp"

using namespace modicum;

TEST_CASE("a file that is cut under a reader gives an error, not a crash and not an answer") {
  const Desk desk;
  const Model model = Model::load(desk.folder / "model", {.threads = 2});
  for (const bool asked_before : {false, true}) {
    const auto knowledge = desk.build(model);
    if (asked_before) knowledge.ask("What?", {.max_new_tokens = 2});
    REQUIRE(::truncate((desk.folder / "a.kv").c_str(), 4096) == 0);
    REQUIRE_THROWS_AS(knowledge.ask("What?", {.max_new_tokens = 2}), Corrupt);
    REQUIRE_THROWS_AS(knowledge.branch(), Corrupt);
  }
}

TEST_CASE("a file that is cut while it answers gives an error") {
  const Desk desk;
  const Model model = Model::load(desk.folder / "model", {.threads = 2});
  const auto knowledge = desk.build(model);
  const TokenCallback cut = [&](const GeneratedToken&) {
    REQUIRE(::truncate((desk.folder / "a.kv").c_str(), 4096) == 0);
    return true;
  };
  REQUIRE_THROWS_AS(knowledge.ask("What?", {.max_new_tokens = 6}, cut), Corrupt);
}

TEST_CASE("a byte that changes under a reader is found before the next answer") {
  const Desk desk;
  const Model model = Model::load(desk.folder / "model", {.threads = 2});
  const auto knowledge = desk.build(model);
  knowledge.ask("What?", {.max_new_tokens = 2});
  std::fstream file(desk.folder / "a.kv", std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(20000);
  file.put('\x55');
  file.close();
  REQUIRE_THROWS_AS(knowledge.ask("What?", {.max_new_tokens = 2}), Corrupt);
}

TEST_CASE("another chat template is refused by name") {
  const Desk desk;
  desk.folder.write("model/chat_template.jinja", "{{ messages }}");
  const Model model = Model::load(desk.folder / "model", {.threads = 2});
  desk.build(model);
  desk.folder.write("model/chat_template.jinja", "{{ messages }}!");
  const Model other = Model::load(desk.folder / "model", {.threads = 2});
  REQUIRE_THROWS_AS(cag::Knowledge::open(desk.folder / "a.kv", other), FingerprintMismatch);
  REQUIRE_THROWS_WITH(cag::Knowledge::open(desk.folder / "a.kv", other), Catch::Contains("chat template"));
}

TEST_CASE("a cache that was built with an adapter is refused without it") {
  const Desk desk;
  const Model model = Model::load(desk.folder / "model", {.threads = 2});
  const auto knowledge = desk.build(model);
  // As a writer would have it that knew adapters.
  cag::Manifest manifest = knowledge.file().manifest();
  manifest.fingerprint.adapter = "0123";
  const cag::SharedPrompt prompt =
      cag::make_shared_prompt(model.tokenizer(), manifest.format, cag::documents_of(knowledge.file()));
  cag::write_knowledge(desk.folder / "b.kv", {.manifest = manifest,
                                              .prompt = prompt,
                                              .hidden = knowledge.file().hidden(),
                                              .rows = {{cag::run_of(*knowledge.file().segments()[0])}}});
  REQUIRE_THROWS_AS(cag::Knowledge::open(desk.folder / "b.kv", model), FingerprintMismatch);
  REQUIRE_THROWS_WITH(cag::Knowledge::open(desk.folder / "b.kv", model), Catch::Contains("applied adapter"));
}
