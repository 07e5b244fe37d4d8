// SPDX-License-Identifier: Apache-2.0
#include "cag/desk.hpp"
#include "support/catch.hpp"

using namespace modicum;

TEST_CASE("questions that are asked together are answered as they are one by one") {
  const Desk desk;
  const Model model = Model::load(desk.folder / "model", {.threads = 2});
  const auto knowledge = desk.build(model);
  const std::vector<std::string> questions{"What does the year card cost?", "When?",
                                           "Is Monday a day of rest?"};
  const cag::AskOptions options{.max_new_tokens = 12};
  const auto together = knowledge.ask_many(questions, options);
  REQUIRE(together.size() == 3);
  for (std::size_t i = 0; i < questions.size(); ++i) {
    const auto alone = knowledge.ask(questions[i], options);
    REQUIRE(together[i].ids == alone.ids);
    REQUIRE(together[i].text == alone.text);
    REQUIRE(together[i].log_probabilities == alone.log_probabilities);
    REQUIRE(together[i].confidence == alone.confidence);
  }
  REQUIRE(knowledge.ask_many({}, options).empty());
}

TEST_CASE("a conversation reads what the whole prompt would, and a reset goes back to the documents") {
  const Desk desk;
  const Model model = Model::load(desk.folder / "model", {.threads = 2});
  const auto knowledge = desk.build(model);
  cag::Session session = knowledge.session();
  REQUIRE(session.size() == 0);
  const cag::AskOptions options{.max_new_tokens = 5};
  const auto first = session.ask("When?", options);
  REQUIRE(first.ids == knowledge.ask("When?", options).ids);
  const auto second = session.ask("And the year card?", options);
  // The whole conversation in one go, as a byte tokenizer reads it.
  std::vector<TokenId> ids = knowledge.branch().tokens();
  const auto add = [&](const std::vector<TokenId>& more) { ids.insert(ids.end(), more.begin(), more.end()); };
  add(knowledge.question_ids("When?"));
  std::vector<TokenId> answer = first.ids;
  if (first.finish_reason == FinishReason::stop_token) answer.pop_back();
  add(answer);
  const auto& format = knowledge.file().manifest().format;
  add(model.tokenizer().encode(format.after_answer + "And the year card?" + format.after_question).ids);
  const KvTree tree = model.transformer().tree();
  const auto logits = logits_after(model, tree, tree.root(), ids);
  const auto best = std::ranges::max_element(logits) - logits.begin();
  REQUIRE(second.ids.front() == static_cast<TokenId>(best));
  REQUIRE(session.turns() == 2);
  REQUIRE(session.size() > knowledge.size());
  REQUIRE_THROWS_AS(session.ask(" ", options), InvalidArgument);
  REQUIRE(session.turns() == 2);
  session.reset();
  REQUIRE(session.turns() == 0);
  REQUIRE(knowledge.tree().rows_in_use() == 0);
  REQUIRE(session.ask("When?", options).ids == first.ids);
}

TEST_CASE("an answer that no line supports has no confidence, and is marked as none") {
  const Desk desk;
  const Model model = Model::load(desk.folder / "model", {.threads = 2});
  const auto knowledge = desk.build(model);
  const auto answer = knowledge.ask("What?", {.max_new_tokens = 12});
  REQUIRE(answer.citations.empty());  // random weights say nothing that stands anywhere
  REQUIRE(answer.confidence == 0);
  REQUIRE(answer.abstained);
  const auto text_alone = knowledge.ask("What?", {.max_new_tokens = 12, .cite = false, .abstain_below = 0.0});
  REQUIRE(text_alone.confidence > 0);
  REQUIRE_FALSE(text_alone.abstained);
  REQUIRE(text_alone.ids == answer.ids);
}
