// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include <sys/stat.h>

#include "cag/desk.hpp"
#include "support/catch.hpp"

using namespace modicum;
namespace fs = std::filesystem;

namespace {

std::size_t files_in(const fs::path& folder) {
  return static_cast<std::size_t>(std::distance(fs::directory_iterator(folder), fs::directory_iterator{}));
}

}  // namespace

TEST_CASE(
    "logits after documents and question are bit-identical cached and mapped, and computed without the "
    "cache") {
  const Desk desk;
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    const Model model = Model::load(desk.folder / "model", {.dtype = dtype, .threads = 2});
    desk.build(model);
    const auto knowledge = cag::Knowledge::open(desk.folder / "a.kv", model);
    const auto question = knowledge.question_ids("What does the year card cost?");
    const auto cached = logits_after(model, knowledge.tree(), knowledge.branch(), question);
    std::vector<TokenId> all = knowledge.branch().tokens();
    all.insert(all.end(), question.begin(), question.end());
    const KvTree tree = model.transformer().tree();
    const auto plain = logits_after(model, tree, tree.root(), all);
    REQUIRE(std::memcmp(cached.data(), plain.data(), plain.size() * sizeof(float)) == 0);
  }
}

TEST_CASE("the documents' and question's tokens are those of the whole prompt") {
  const Desk desk;
  const Model model = Model::load(desk.folder / "model");
  cag::BuildOptions options;
  options.format.after_question = "<|end|>\n";
  const bool with_special = GENERATE(false, true);
  if (with_special) options.format.before_question = "<|end|>\n<|user|>\n";
  const auto knowledge = desk.build(model, "a.kv", options);
  std::vector<TokenId> ids = knowledge.branch().tokens();
  const auto question = knowledge.question_ids("  When?\n");
  ids.insert(ids.end(), question.begin(), question.end());
  const std::string text = std::string(knowledge.file().prompt()) + "When?" + options.format.after_question;
  REQUIRE(ids == model.tokenizer().encode(text).ids);
  REQUIRE((knowledge.file().manifest().resume_token > 0) == with_special);
}

TEST_CASE("asking leaves the knowledge as it was, from several threads too") {
  const Desk desk;
  const Model model = Model::load(desk.folder / "model", {.threads = 2});
  const auto knowledge = desk.build(model);
  const auto first = knowledge.ask("What does the year card cost?", {.max_new_tokens = 8});
  REQUIRE(first.cost.cached_tokens == knowledge.branch().size());
  REQUIRE(first.cost.new_tokens == first.ids.size());
  std::vector<std::thread> threads;
  std::vector<cag::Answer> answers(4);
  for (cag::Answer& answer : answers) {
    threads.emplace_back(
        [&] { answer = knowledge.ask("What does the year card cost?", {.max_new_tokens = 8}); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const cag::Answer& answer : answers) REQUIRE(answer.ids == first.ids);
  REQUIRE(knowledge.tree().rows_in_use() == 0);
}

TEST_CASE("every flipped byte of a cache file is found") {
  const Desk desk;
  const Model model = Model::load(desk.folder / "model");
  desk.build(model);
  const std::string good = desk.folder.read("a.kv");
  for (std::size_t at = 0; at < good.size(); at += at < 5000 ? 37 : 1009) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 0x10);
    const auto path = desk.folder.write("bad.kv", bad);
    INFO("byte " << at);
    REQUIRE_THROWS_AS(cag::Knowledge::open(path, model).ask("What?"), Error);
  }
}

TEST_CASE("truncated, grown, empty and foreign files are refused") {
  const Desk desk;
  const Model model = Model::load(desk.folder / "model");
  desk.build(model);
  const std::string good = desk.folder.read("a.kv");
  for (const std::size_t size :
       {std::size_t{0}, std::size_t{7}, std::size_t{4096}, good.size() / 2, good.size() - 1}) {
    const auto path = desk.folder.write("bad.kv", good.substr(0, size));
    REQUIRE_THROWS_AS(cag::Knowledge::open(path, model), FormatError);
  }
  REQUIRE_THROWS_AS(cag::Knowledge::open(desk.folder.write("bad.kv", good + "x"), model), FormatError);
  REQUIRE_THROWS_AS(cag::Knowledge::open(desk.folder / "model/model.safetensors", model), FormatError);
  REQUIRE_THROWS_AS(cag::Knowledge::open(desk.folder / "model/config.json", model), FormatError);
  REQUIRE_THROWS_AS(cag::Knowledge::open(desk.folder / "missing.kv", model), IoError);
}

TEST_CASE("another model of the same shape, dtype or tokenizer is refused by name") {
  const Desk desk;
  const Model model = Model::load(desk.folder / "model");
  desk.build(model);
  write_tiny_model(desk.folder / "other", 2);
  const Model other = Model::load(desk.folder / "other");
  REQUIRE_THROWS_AS(cag::Knowledge::open(desk.folder / "a.kv", other), FingerprintMismatch);
  REQUIRE_THROWS_WITH(cag::Knowledge::open(desk.folder / "a.kv", other), Catch::Contains("weights"));
  const Model half = Model::load(desk.folder / "model", {.dtype = DType::bf16});
  REQUIRE_THROWS_WITH(cag::Knowledge::open(desk.folder / "a.kv", half), Catch::Contains("dtype"));
  std::string tokenizer = byte_tokenizer_json();
  tokenizer.replace(tokenizer.find("<|user|>"), 8, "<|asks|>");
  write_tiny_model(desk.folder / "retold");
  desk.folder.write("retold/tokenizer.json", tokenizer);
  const Model retold = Model::load(desk.folder / "retold");
  REQUIRE_THROWS_WITH(cag::Knowledge::open(desk.folder / "a.kv", retold), Catch::Contains("tokenizer"));
}

TEST_CASE("a context that would overflow is an error with both counts before any work") {
  const Desk desk;
  write_tiny_model(desk.folder / "short", 1, 160);
  const Model model = Model::load(desk.folder / "short");
  bool worked = false;
  const Progress progress = [&](auto, auto, auto) { return worked = true; };
  REQUIRE_THROWS_AS(desk.build(model, "a.kv", {}, progress), ContextOverflow);
  REQUIRE_THROWS_WITH(desk.build(model, "a.kv", {}, progress),
                      Catch::Contains("at most 160 tokens") && Catch::Contains("fees.md"));
  REQUIRE_FALSE(worked);
  REQUIRE_FALSE(fs::exists(desk.folder / "a.kv"));
  const Model longer = Model::load(desk.folder / "model");
  const auto knowledge = desk.build(longer);
  REQUIRE_THROWS_AS(knowledge.ask(std::string(600, 'x')), ContextOverflow);
  REQUIRE_THROWS_AS(knowledge.ask("x", {.max_new_tokens = 1000}), ContextOverflow);
  REQUIRE_THROWS_AS(knowledge.ask(" \n"), InvalidArgument);
}

TEST_CASE("a cancelled or failed build leaves the old file and nothing beside it") {
  const Desk desk;
  const Model model = Model::load(desk.folder / "model");
  desk.build(model);
  const std::string good = desk.folder.read("a.kv");
  const std::size_t files = files_in(desk.folder.path());
  const Progress stop = [](auto, auto, auto) { return false; };
  REQUIRE_THROWS_AS(desk.build(model, "a.kv", {}, stop), Cancelled);
  desk.folder.write("documents/bad.md", "\xff");
  REQUIRE_THROWS_AS(desk.build(model), FormatError);
  REQUIRE(desk.folder.read("a.kv") == good);
  REQUIRE(files_in(desk.folder.path()) == files);
  fs::remove(desk.folder / "documents/bad.md");
  REQUIRE_THROWS_AS(desk.build(model, "missing/folder/a.kv"), IoError);
}

TEST_CASE("readers keep the file that they opened when a new one takes its place") {
  const Desk desk;
  const Model model = Model::load(desk.folder / "model");
  const auto old = desk.build(model);
  const auto before = old.ask("What?", {.max_new_tokens = 4});
  desk.folder.write("documents/fees.md", "# Fees\nEverything is free.\n");
  const auto fresh = desk.build(model);
  REQUIRE(fresh.branch().tokens() != old.branch().tokens());
  REQUIRE(old.ask("What?", {.max_new_tokens = 4}).ids == before.ids);
}

TEST_CASE("a cache is private to its owner and the same inputs give the same bytes") {
  const Desk desk;
  const Model model = Model::load(desk.folder / "model");
  desk.build(model);
  desk.build(model, "b.kv");
  REQUIRE(desk.folder.read("a.kv") == desk.folder.read("b.kv"));
  struct stat info{};
  REQUIRE(::stat((desk.folder / "a.kv").c_str(), &info) == 0);
  REQUIRE((info.st_mode & 0777) == 0600);
}

TEST_CASE("two builds at once to one path leave one whole file") {
  const Desk desk;
  const Model model = Model::load(desk.folder / "model");
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) threads.emplace_back([&] { desk.build(model); });
  for (std::thread& thread : threads) thread.join();
  REQUIRE(cag::Knowledge::open(desk.folder / "a.kv", model).branch().size() > 0);
  REQUIRE(files_in(desk.folder.path()) == 3);
}
