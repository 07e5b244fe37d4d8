// SPDX-License-Identifier: Apache-2.0
#include <thread>

#include "cag/desk.hpp"
#include "support/catch.hpp"

using namespace modicum;
using cag::Document;

namespace {

Document document(std::string name, std::string text, bool changes_often = false) {
  return {.name = name, .source = name, .text = std::move(text), .changes_often = changes_often};
}

const std::vector<Document> kThree{document("a.md", "# Fees\nDay ticket: 4 euros\n"),
                                   document("b.md", "# Hours\nMonday: 9:00 to 17:00\n"),
                                   document("c.md", "# Rules\nNo dogs in the hall\n")};

/// After a change, the file's documents, keys, values and answers are those of a fresh build.
void require_fresh(const Desk& desk, const Model& model, const cag::BuildOptions& options) {
  const auto updated = cag::Knowledge::open(desk.folder / "a.kv", model);
  const std::vector<Document> documents = cag::documents_of(updated.file());
  const auto fresh = cag::build(model, documents, desk.folder / "fresh.kv", options);
  REQUIRE(same_bits(logits_of(updated, "What is a ticket?"), logits_of(fresh, "What is a ticket?")));
  REQUIRE(desk.folder.read("a.kv") == desk.folder.read("fresh.kv"));
}

}  // namespace

TEST_CASE("every way of changing a cache gives what a fresh build of the same documents gives, bit for bit") {
  const Desk desk;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const Model model = Model::load(desk.folder / "model", {.dtype = dtype, .threads = 2});
    const cag::BuildOptions options;
    cag::build(model, kThree, desk.folder / "a.kv", options);
    const auto path = desk.folder / "a.kv";

    const std::vector<Document> added{document("d.md", "# Map\nThe hall is on the left\n")};
    auto changes = cag::update(model, path, added);
    REQUIRE(changes.added == std::vector<std::string>{"d.md"});
    REQUIRE(changes.computed_tokens < changes.tokens / 2);
    require_fresh(desk, model, options);

    const std::vector<Document> replaced{document("b.md", "# Hours\nTuesday: 10:00 to 12:00\n")};
    changes = cag::update(model, path, replaced);
    REQUIRE(changes.replaced == std::vector<std::string>{"b.md"});
    REQUIRE(changes.unchanged == std::vector<std::string>{"a.md", "c.md", "d.md"});
    REQUIRE(changes.computed_tokens < changes.tokens);
    require_fresh(desk, model, options);

    const std::vector<std::string> removed{"c.md"};
    changes = cag::update(model, path, {}, removed);
    REQUIRE(changes.removed == removed);
    require_fresh(desk, model, options);

    const std::string before = desk.folder.read("a.kv");
    changes = cag::update(model, path, replaced);
    REQUIRE(changes.computed_tokens == 0);
    REQUIRE(changes.unchanged.size() == 3);
    REQUIRE(desk.folder.read("a.kv") == before);
  }
}

TEST_CASE("a cache in blocks reads what changed and nothing else") {
  const Desk desk;
  const Model model = Model::load(desk.folder / "model", {.threads = 2});
  for (const auto encoding : {cag::KvEncoding::wide, cag::KvEncoding::int8}) {
    const cag::BuildOptions options{.layout = cag::Layout::blocks, .kv = encoding};
    cag::build(model, kThree, desk.folder / "a.kv", options);
    const std::vector<Document> replaced{document("a.md", "# Fees\nEverything is free\n")};
    const auto changes = cag::update(model, desk.folder / "a.kv", replaced);
    // "[a.md]\n", its text and two line ends, a token a byte.
    REQUIRE(changes.computed_tokens == 7 + replaced[0].text.size() + 2);
    const auto updated = cag::Knowledge::open(desk.folder / "a.kv", model);
    const auto fresh =
        cag::build(model, cag::documents_of(updated.file()), desk.folder / "fresh.kv", options);
    REQUIRE(same_bits(logits_of(updated, "What?"), logits_of(fresh, "What?")));
  }
}

TEST_CASE("a joint cache of codes is read from the start, and is then a fresh one") {
  const Desk desk;
  const Model model = Model::load(desk.folder / "model", {.threads = 2});
  const cag::BuildOptions options{.kv = cag::KvEncoding::int8};
  cag::build(model, kThree, desk.folder / "a.kv", options);
  const std::vector<Document> added{document("d.md", "# Map\nThe hall is on the left\n")};
  cag::update(model, desk.folder / "a.kv", added);
  require_fresh(desk, model, options);
}

TEST_CASE("documents that change often stand behind the others, also those that come later") {
  const Desk desk;
  const Model model = Model::load(desk.folder / "model", {.threads = 2});
  std::vector<Document> documents = kThree;
  documents[0].changes_often = true;
  cag::build(model, documents, desk.folder / "a.kv");
  const std::vector<Document> added{document("d.md", "More\n")};
  cag::update(model, desk.folder / "a.kv", added);
  const auto knowledge = cag::Knowledge::open(desk.folder / "a.kv", model);
  std::vector<std::string> names;
  for (const auto& d : knowledge.file().manifest().documents) names.push_back(d.name);
  REQUIRE(names == std::vector<std::string>{"b.md", "c.md", "d.md", "a.md"});
}

TEST_CASE("a change that makes no sense leaves the file as it was") {
  const Desk desk;
  const Model model = Model::load(desk.folder / "model", {.threads = 2});
  cag::build(model, kThree, desk.folder / "a.kv");
  const std::string before = desk.folder.read("a.kv");
  const auto path = desk.folder / "a.kv";
  const std::vector<std::string> unknown{"x.md"};
  REQUIRE_THROWS_WITH(cag::update(model, path, {}, unknown),
                      Catch::Contains("x.md") && Catch::Contains("a.md"));
  const std::vector<std::string> all{"a.md", "b.md", "c.md"};
  REQUIRE_THROWS_AS(cag::update(model, path, {}, all), InvalidArgument);
  const std::vector<Document> bad{document("d.md", "\xff")}, huge{document("d.md", std::string(600, 'x'))};
  REQUIRE_THROWS_AS(cag::update(model, path, bad), FormatError);
  REQUIRE_THROWS_AS(cag::update(model, path, huge), ContextOverflow);
  const std::vector<Document> added{document("d.md", "More\n")};
  const Progress stop = [](auto, auto, auto) { return false; };
  REQUIRE_THROWS_AS(cag::update(model, path, added, {}, stop), Cancelled);
  REQUIRE(desk.folder.read("a.kv") == before);
  REQUIRE(desk.folder.names().size() == 3);
}

TEST_CASE("of two writers who change the same file, one succeeds and the other is told") {
  const Desk desk;
  const Model model = Model::load(desk.folder / "model", {.threads = 2});
  cag::build(model, kThree, desk.folder / "a.kv");
  // The other one changes the file while this one computes.
  bool done = false;
  const Progress other = [&](auto, auto, auto) {
    if (!done) {
      done = true;
      // On a thread of its own, as the model is busy here; with a model of its own for the same reason.
      std::thread([&] {
        const Model second = Model::load(desk.folder / "model", {.threads = 1});
        const std::vector<Document> added{document("e.md", "Other\n")};
        cag::update(second, desk.folder / "a.kv", added);
      }).join();
    }
    return true;
  };
  const std::vector<Document> added{document("d.md", "More\n")};
  REQUIRE_THROWS_AS(cag::update(model, desk.folder / "a.kv", added, {}, other), IoError);
  const auto knowledge = cag::Knowledge::open(desk.folder / "a.kv", model);
  REQUIRE(knowledge.file().manifest().documents.back().name == "e.md");
  cag::update(model, desk.folder / "a.kv", added);
  REQUIRE(cag::Knowledge::open(desk.folder / "a.kv", model).file().manifest().documents.size() == 5);
}

TEST_CASE("readers keep the file that they opened while it is changed") {
  const Desk desk;
  const Model model = Model::load(desk.folder / "model", {.threads = 2});
  const auto old = cag::build(model, kThree, desk.folder / "a.kv");
  const auto before = logits_of(old, "What?");
  const std::vector<std::string> removed{"a.md"};
  cag::update(model, desk.folder / "a.kv", {}, removed);
  REQUIRE(same_bits(logits_of(old, "What?"), before));
  REQUIRE(old.ask("What?", {.max_new_tokens = 2}).ids.size() > 0);
}

TEST_CASE("a build that was broken off goes on where it was, and gives the same file") {
  const Desk desk;
  write_tiny_model(desk.folder / "long", 1, 8000);
  const Model model = Model::load(desk.folder / "long", {.threads = 2});
  std::vector<Document> documents;
  for (int i = 0; i < 6; ++i) {
    documents.push_back(
        document(std::to_string(i) + ".md", std::string(900, static_cast<char>('a' + i)) + "\n"));
  }
  for (const auto layout : {cag::Layout::joint, cag::Layout::blocks}) {
    const cag::BuildOptions options{.layout = layout, .journal_seconds = 0};
    std::size_t read = 0;
    const Progress stop = [&](auto, std::size_t done, auto) {
      read = done;
      return done < 3000;
    };
    REQUIRE_THROWS_AS(cag::build(model, documents, desk.folder / "a.kv", options, stop), Cancelled);
    REQUIRE(read >= 3000);
    REQUIRE(std::filesystem::exists(desk.folder / "a.kv.partial"));
    REQUIRE_FALSE(std::filesystem::exists(desk.folder / "a.kv"));
    std::size_t left = 0;
    const Progress watch = [&](auto, auto, std::size_t total) {
      left = total;
      return true;
    };
    cag::build(model, documents, desk.folder / "a.kv", options, watch);
    REQUIRE(left < 4000);
    REQUIRE_FALSE(std::filesystem::exists(desk.folder / "a.kv.partial"));
    cag::build(model, documents, desk.folder / "b.kv", options);
    REQUIRE(desk.folder.read("a.kv") == desk.folder.read("b.kv"));
    std::filesystem::remove(desk.folder / "a.kv");
  }
  // What another model left is of no use, and no error.
  const cag::BuildOptions options{.journal_seconds = 0};
  const Progress stop = [](auto, std::size_t done, auto) { return done < 3000; };
  REQUIRE_THROWS_AS(cag::build(model, documents, desk.folder / "a.kv", options, stop), Cancelled);
  write_tiny_model(desk.folder / "other", 2, 8000);
  const Model other = Model::load(desk.folder / "other", {.threads = 2});
  cag::build(other, documents, desk.folder / "a.kv", options);
  REQUIRE(cag::verify_deep(other, desk.folder / "a.kv").difference == 0);
}
