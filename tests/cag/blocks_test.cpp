// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "cag/desk.hpp"
#include "support/catch.hpp"

using namespace modicum;
using cag::Document;

namespace {

std::vector<Document> many(int count) {
  std::vector<Document> documents;
  for (int i = 0; i < count; ++i) {
    const std::string name = "place" + std::to_string(i) + ".md";
    documents.push_back(
        {.name = name,
         .source = name,
         .text = "Room " + std::to_string(100 + i) + " is called hall" + std::to_string(i) + "\n"});
  }
  return documents;
}

double root_mean_square(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0, size = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    sum += (a[i] - b[i]) * (a[i] - b[i]);
    size += a[i] * a[i];
  }
  return std::sqrt(sum / size);
}

/// Logits after the same documents and question, read in one causal pass.
std::vector<float> joint_logits(const cag::Knowledge& blocks, std::string_view text) {
  const Model& model = blocks.model();
  std::vector<TokenId> ids = blocks.branch().tokens();
  const auto question = blocks.question_ids(text);
  ids.insert(ids.end(), question.begin(), question.end());
  const KvTree tree = model.transformer().tree();
  return logits_after(model, tree, tree.root(), ids);
}

}  // namespace

TEST_CASE("one document in blocks is the joint pass, bit for bit: it stands where it was read") {
  const Desk desk;
  const Model model = Model::load(desk.folder / "model", {.threads = 2});
  const auto blocks = cag::build(model, many(1), desk.folder / "b.kv", {.layout = cag::Layout::blocks});
  REQUIRE(same_bits(logits_of(blocks, "Which room?"), joint_logits(blocks, "Which room?")));
}

TEST_CASE("with every token computed in place, blocks are the joint pass") {
  const Desk desk;
  const Model model = Model::load(desk.folder / "model", {.threads = 2});
  const auto blocks =
      cag::build(model, many(4), desk.folder / "b.kv", {.layout = cag::Layout::blocks, .recompute = 1000});
  REQUIRE(same_bits(logits_of(blocks, "Which room?"), joint_logits(blocks, "Which room?")));
}

TEST_CASE("the more tokens of each segment are computed in place, the nearer blocks come to the joint pass") {
  const Desk desk;
  const Model model = Model::load(desk.folder / "model", {.threads = 2});
  std::vector<double> apart;
  for (const std::size_t recompute : {0, 8, 40}) {
    const auto blocks = cag::build(model, many(4), desk.folder / "b.kv",
                                   {.layout = cag::Layout::blocks, .recompute = recompute});
    apart.push_back(root_mean_square(logits_of(blocks, "Which room?"), joint_logits(blocks, "Which room?")));
    const auto& measured = blocks.file().manifest().certificate.measurements;
    REQUIRE(measured.size() == 1);
    REQUIRE(measured[0].what == "blocks");
    REQUIRE(measured[0].against == "joint");
    REQUIRE((measured[0].kl > 0) == (recompute < 40));
  }
  REQUIRE(apart[0] > apart[2]);
  REQUIRE(apart[2] < 0.5);
}

TEST_CASE("a long document is cut into parts that join to its text") {
  const Desk desk;
  const Model model = Model::load(desk.folder / "model", {.threads = 2});
  std::string text;
  for (int i = 0; i < 8; ++i) text += "Line " + std::to_string(i) + " é 語 of a long text\n";
  const std::vector<Document> documents{{.name = "long.md", .source = "long.md", .text = text},
                                        {.name = "x.md", .source = "x.md", .text = std::string(90, 'x')}};
  const auto blocks = cag::build(model, documents, desk.folder / "b.kv",
                                 {.layout = cag::Layout::blocks, .segment_tokens = 64});
  const auto& manifest = blocks.file().manifest();
  REQUIRE(blocks.file().document_text(0) == text);
  REQUIRE(manifest.segments.size() > 5);
  for (const auto& segment : manifest.segments) {
    if (segment.document) REQUIRE(segment.tokens() <= 64);
  }
  REQUIRE(cag::documents_of(blocks.file())[1].text == documents[1].text);
}

TEST_CASE("more documents than fit are selected from by question, and the answer says which") {
  const Desk desk;
  write_tiny_model(desk.folder / "short", 1, 320);
  const Model model = Model::load(desk.folder / "short", {.threads = 2});
  const auto documents = many(40);
  cag::BuildOptions options{.layout = cag::Layout::blocks};
  REQUIRE_THROWS_AS(cag::build(model, documents, desk.folder / "b.kv", options), ContextOverflow);
  options.overflow = cag::Overflow::select;
  const auto knowledge = cag::build(model, documents, desk.folder / "b.kv", options);
  REQUIRE(knowledge.size() > 320);
  REQUIRE_THROWS_AS(knowledge.branch(), Unsupported);
  const auto answer = knowledge.ask("What is the number of hall17?", {.max_new_tokens = 8});
  REQUIRE(std::ranges::find(answer.selected, "place17.md") != answer.selected.end());
  REQUIRE(answer.selected.size() < 40);
  REQUIRE(answer.cost.cached_tokens + answer.cost.computed_tokens + answer.cost.question_tokens + 8 <= 320);
  const auto one = knowledge.ask("What is the number of hall17?", {.max_new_tokens = 8, .most_segments = 1});
  REQUIRE(one.selected == std::vector<std::string>{"place17.md"});
  const auto again =
      knowledge.ask("What is the number of hall17?", {.max_new_tokens = 8, .most_segments = 1});
  REQUIRE(again.ids == one.ids);
  REQUIRE(again.cost.computed_tokens == 0);
  options.layout = cag::Layout::joint;
  REQUIRE_THROWS_AS(cag::build(model, documents, desk.folder / "c.kv", options), InvalidArgument);
}
