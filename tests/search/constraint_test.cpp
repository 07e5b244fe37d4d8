// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include <modicum/search/all_of.hpp>
#include <modicum/search/beam.hpp>
#include <modicum/search/phrases.hpp>

#include "decode/toy_model.hpp"
#include "support/byte_tokenizer.hpp"
#include "support/catch.hpp"

using modicum::AllowedScratch;
using modicum::AllowedTokens;
using modicum::BeamOptions;
using modicum::Constraint;
using modicum::FinishReason;
using modicum::Phrases;
using modicum::TokenId;

namespace {

constexpr std::size_t kVocabulary = 258;

const modicum::Tokenizer& tokenizer() {
  static const auto one = modicum::Tokenizer::parse(byte_tokenizer_json());
  return one;
}

/// Texts of `size` tokens out of `tokens`; counts the states that are held.
class Some : public Constraint {
 public:
  Some(std::vector<TokenId> tokens, std::size_t size) : tokens_(std::move(tokens)), size_(size) {}
  ~Some() override { CHECK(held == 0); }

  State root() const override { return ++held, 0; }
  AllowedTokens allowed(State state, AllowedScratch&) const override {
    return {.kind = AllowedTokens::Kind::only,
            .tokens = state < size_ ? tokens_ : std::span<const TokenId>(),
            .may_end = state == size_};
  }
  State advance(State state, TokenId token) const override {
    CHECK(std::ranges::count(tokens_, token) == 1);
    ++held;
    return state + 1;
  }
  bool ends_by_itself() const override { return true; }
  void release(State) const noexcept override { --held; }

  mutable int held = 0;

 private:
  std::vector<TokenId> tokens_;
  std::size_t size_;
};

auto search(const BeamOptions& options, const Constraint* constraint) {
  toy::HashModel model{kVocabulary};
  const std::vector<TokenId> prompt{7};
  const auto state = toy::HashModel::read_all(prompt);
  return modicum::beam(model, state, model.logits(state), prompt, options, {.constraint = constraint});
}

std::string text(const std::vector<TokenId>& ids) {
  return {ids.begin(), ids.end()};  // a token of this tokenizer is a byte
}

Constraint::State after(const Constraint& constraint, const std::string& written) {
  Constraint::State state = constraint.root();
  for (const char c : written) state = constraint.advance(state, static_cast<unsigned char>(c));
  return state;
}

}  // namespace

TEST_CASE("a search writes nothing that its constraint does not allow, and lets go of every state") {
  const std::vector<TokenId> tokens{20, 21, 40, 41};
  for (const auto mode : {modicum::BeamMode::transformers, modicum::BeamMode::native}) {
    for (const std::size_t beams : {1u, 2u, 5u, 17u}) {
      const Some some(tokens, 3);
      const auto found =
          search({.beams = beams, .max_new_tokens = 9, .num_return = beams, .mode = mode}, &some);
      REQUIRE(!found.hypotheses.empty());
      for (const auto& hypothesis : found.hypotheses) {
        CHECK(hypothesis.ids.size() == 3);
        CHECK(hypothesis.finish_reason == FinishReason::complete);
        CHECK(std::ranges::all_of(hypothesis.ids, [&](TokenId t) { return std::ranges::count(tokens, t); }));
      }
    }
  }
}

TEST_CASE("with stop tokens, a constrained text ends by one, where it may") {
  const Some some({20, 21, 40, 41}, 3);
  const auto found = search({.beams = 4, .max_new_tokens = 9, .num_return = 4, .stop_ids = {1, 2}}, &some);
  for (const auto& hypothesis : found.hypotheses) {
    CHECK(hypothesis.ids.size() == 4);
    CHECK((hypothesis.ids.back() == 1 || hypothesis.ids.back() == 2));
  }
}

TEST_CASE("what no text within the length can satisfy is an error, and so is a token beyond the vocabulary") {
  const Some too_long({20, 21}, 10);
  CHECK_THROWS_AS(search({.max_new_tokens = 9}, &too_long), modicum::InvalidArgument);
  const Some unknown({20, 258}, 2);
  CHECK_THROWS_AS(search({.max_new_tokens = 9}, &unknown), modicum::InvalidArgument);
  const Some nothing({}, 2);
  CHECK_THROWS_AS(search({.max_new_tokens = 9}, &nothing), modicum::InvalidArgument);
}

TEST_CASE("banned phrases are found however they begin, and only where they are whole") {
  const Phrases rules(tokenizer(), kVocabulary, {.banned = {"abab", "bc"}});
  CHECK(rules.allows(after(rules, "ab"), 'a'));
  CHECK_FALSE(rules.allows(after(rules, "aba"), 'b'));
  CHECK_FALSE(rules.allows(after(rules, "xaba"), 'b'));
  CHECK_FALSE(rules.allows(after(rules, "aab"), 'c'));
  CHECK(rules.allows(after(rules, "aaab"), 'x'));
  const Phrases any_case(tokenizer(), kVocabulary, {.banned = {"No"}, .ignore_case = true});
  CHECK_FALSE(any_case.allows(after(any_case, "n"), 'O'));
}

TEST_CASE("no search ever writes a banned phrase") {
  std::vector<std::string> banned;
  for (char c = 'A'; c <= 'z'; ++c) banned.push_back(std::string{static_cast<char>(1), c});
  banned.push_back(std::string(1, static_cast<char>(2)));
  const Phrases rules(tokenizer(), kVocabulary, {.banned = banned});
  for (const auto& h : search({.beams = 12, .max_new_tokens = 40, .num_return = 12}, &rules).hypotheses) {
    for (const std::string& phrase : banned) CHECK(text(h.ids).find(phrase) == std::string::npos);
  }
}

TEST_CASE("required phrases are all in the text, which does not end before") {
  const std::vector<std::string> phrases{"open", "at nine", "pen a"};
  const Phrases rules(tokenizer(), kVocabulary, {.banned = {"x"}, .required = phrases});
  CHECK(rules.required() == 4 + 7 + 5);
  CHECK(rules.progress(after(rules, "an ope")) == 3);
  CHECK(rules.progress(after(rules, "open")) == 4 + 3);
  CHECK(rules.ending(after(rules, "open at nin")) == Constraint::Ending::no);
  CHECK(rules.ending(after(rules, "open at nine")) == Constraint::Ending::may);
  const auto found =
      search({.beams = 34, .max_new_tokens = 40, .num_return = 3, .stop_ids = {1, 2, 3}}, &rules);
  for (const auto& hypothesis : found.hypotheses) {
    for (const std::string& phrase : phrases) {
      CHECK(text(hypothesis.ids).find(phrase) != std::string::npos);
    }
    CHECK(text(hypothesis.ids).find('x') == std::string::npos);
  }
}

TEST_CASE("phrases that make no sense are named") {
  const auto make = [](modicum::PhraseOptions options) { return Phrases(tokenizer(), kVocabulary, options); };
  CHECK_THROWS_AS(make({}), modicum::InvalidArgument);
  CHECK_THROWS_AS(make({.banned = {""}}), modicum::InvalidArgument);
  CHECK_THROWS_AS(make({.required = std::vector<std::string>(33, "a")}), modicum::InvalidArgument);
}

TEST_CASE("all of several constraints hold together") {
  const auto some = std::make_shared<Some>(std::vector<TokenId>{'a', 'b', 'c'}, 4);
  const auto rules = std::make_shared<Phrases>(
      tokenizer(), kVocabulary, modicum::PhraseOptions{.banned = {"ab", "cc"}, .required = {"ca"}});
  {
    const modicum::AllOf both({some, rules});
    const auto found = search({.beams = 16, .max_new_tokens = 9, .num_return = 16}, &both);
    REQUIRE(!found.hypotheses.empty());
    for (const auto& h : found.hypotheses) {
      CHECK(h.ids.size() == 4);
      CHECK(text(h.ids).find("ca") != std::string::npos);
      CHECK(text(h.ids).find("ab") == std::string::npos);
      CHECK(text(h.ids).find("cc") == std::string::npos);
    }
  }
  CHECK(some->held == 0);
  CHECK_THROWS_AS(modicum::AllOf({}), modicum::InvalidArgument);
}

TEST_CASE("the bytes of a token are what it adds to a text") {
  for (int byte = 0; byte < 256; ++byte) {
    CHECK(tokenizer().bytes_of(byte) == std::string(1, static_cast<char>(byte)));
  }
  CHECK(tokenizer().bytes_of(256).empty());  // special
  CHECK(tokenizer().bytes_of(999).empty());
}
