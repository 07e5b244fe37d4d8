// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <vector>

#include <modicum/search/beam.hpp>

#include "decode/toy_model.hpp"
#include "search/beam_reference.hpp"
#include "search/transformers_golden.hpp"
#include "support/catch.hpp"

using modicum::BeamOptions;
using modicum::EarlyStopping;
using modicum::FinishReason;
using modicum::TokenId;

namespace {

modicum::BeamResult<toy::HashModel::State> search(const std::vector<TokenId>& prompt,
                                                  const BeamOptions& options, std::size_t vocabulary = 160,
                                                  const modicum::Progress& progress = {}) {
  toy::HashModel model{vocabulary};
  const auto state = toy::HashModel::read_all(prompt);
  return modicum::beam(model, state, model.logits(state), prompt, options, {.progress = progress});
}

void check_equals_reference(const std::vector<TokenId>& prompt, const BeamOptions& options,
                            std::size_t vocabulary) {
  std::uint64_t steps = 0;
  const auto count = [&](std::string_view, std::uint64_t done, std::uint64_t) {
    steps = done;
    return true;
  };
  const auto result = search(prompt, options, vocabulary, count);
  const auto expected = reference::beam_search({vocabulary}, prompt, options);
  REQUIRE(steps == expected.steps);
  REQUIRE(result.hypotheses.size() == options.num_return);
  for (std::size_t i = 0; i < options.num_return; ++i) {
    REQUIRE(result.hypotheses[i].ids == expected.beams[i].ids);
    REQUIRE(result.hypotheses[i].score == expected.beams[i].score);
  }
}

}  // namespace

TEST_CASE("beam search returns what transformers returns, token for token") {
  for (const auto& expected : golden::kCases) {
    const auto result = search(expected.prompt, expected.options);
    CAPTURE(expected.prompt, expected.options.beams, expected.options.length_penalty);
    REQUIRE(result.hypotheses.size() == expected.hypotheses.size());
    for (std::size_t i = 0; i < result.hypotheses.size(); ++i) {
      CHECK(result.hypotheses[i].ids == expected.hypotheses[i].ids);
      CHECK(result.hypotheses[i].score == Approx(expected.hypotheses[i].score).epsilon(1e-5).margin(2e-5));
    }
  }
}

TEST_CASE("beam search equals its specification over the whole grid of options") {
  const std::vector<TokenId> stops{1, 2, 3};
  TokenId first = 4;
  for (const std::size_t beams : {2u, 3u, 5u, 8u, 17u}) {
    for (const double length_penalty : {-1.0, 0.0, 0.5, 1.0, 2.0}) {
      for (const auto early : {EarlyStopping::no, EarlyStopping::yes, EarlyStopping::never}) {
        for (const std::size_t n_stops : {0u, 1u, 3u}) {
          for (const std::size_t longest : {1u, 2u, 9u}) {
            first = 4 + (first + 1) % 150;
            CAPTURE(beams, length_penalty, static_cast<int>(early), n_stops, longest, first);
            check_equals_reference({first, 9},
                                   {.beams = beams,
                                    .max_new_tokens = longest,
                                    .min_new_tokens = first % 3 == 0 ? longest / 2 : 0,
                                    .length_penalty = length_penalty,
                                    .early_stopping = early,
                                    .num_return = beams,
                                    .stop_ids = {stops.begin(), stops.begin() + n_stops},
                                    .repetition_penalty = first % 4 == 0 ? 1.2 : 1.0},
                                   160);
          }
        }
      }
    }
  }
}

TEST_CASE("beams that the vocabulary cannot fill are filled as in transformers, and not returned") {
  const auto result = search(
      {4}, {.beams = 5, .max_new_tokens = 2, .min_new_tokens = 2, .num_return = 5, .stop_ids = {0, 1, 2}}, 5);
  CHECK(result.hypotheses.size() == 4);
  for (const auto& hypothesis : result.hypotheses) {
    CHECK(hypothesis.score > -100.0f);
  }
  check_equals_reference({4}, {.beams = 5, .max_new_tokens = 4, .num_return = 5}, 5);
}

TEST_CASE("one beam is greedy generation") {
  toy::HashModel model;
  const std::vector<TokenId> prompt{5, 6};
  const auto state = toy::HashModel::read_all(prompt);
  const auto greedy = modicum::generate(model, state, model.logits(state), prompt,
                                        {.max_new_tokens = 20, .stop_ids = {1, 2, 3}});
  const auto result = search(prompt, {.beams = 1, .max_new_tokens = 20, .stop_ids = {1, 2, 3}});
  REQUIRE(result.hypotheses.size() == 1);
  CHECK(result.hypotheses[0].ids == greedy.ids);
  CHECK(result.hypotheses[0].finish_reason == greedy.finish_reason);
  float sum = 0.0f;
  for (const float log_probability : greedy.log_probabilities) {
    sum += log_probability;
  }
  CHECK(result.hypotheses[0].score == Approx(sum / static_cast<float>(greedy.ids.size())));
}

TEST_CASE("a group avoids what an earlier one chose, in the last step too") {
  for (const auto mode : {modicum::BeamMode::transformers, modicum::BeamMode::native}) {
    const auto result = search({5, 6}, {.beams = 4,
                                        .max_new_tokens = 3,
                                        .num_return = 4,
                                        .groups = 4,
                                        .diversity_penalty = 100.0,
                                        .mode = mode});
    REQUIRE(result.hypotheses.size() == 4);
    for (std::size_t at = 0; at < 3; ++at) {
      std::set<TokenId> tokens;
      for (const auto& hypothesis : result.hypotheses) tokens.insert(hypothesis.ids[at]);
      CHECK(tokens.size() == 4);
    }
  }
}

TEST_CASE("a group returns no more hypotheses than it has beams") {
  for (TokenId first = 5; first < 12; ++first) {
    const auto result = search({first, 6}, {.beams = 6,
                                            .max_new_tokens = 12,
                                            .length_penalty = 2.0,
                                            .early_stopping = EarlyStopping::never,
                                            .num_return = 6,
                                            .stop_ids = {1},
                                            .groups = 3,
                                            .diversity_penalty = 100.0});
    std::map<TokenId, int> by_first;  // the groups begin with different tokens
    for (const auto& hypothesis : result.hypotheses) {
      if (hypothesis.ids.size() > 1) ++by_first[hypothesis.ids.front()];
    }
    CHECK(result.hypotheses.size() == 6);
    CHECK(std::ranges::all_of(by_first, [](const auto& entry) { return entry.second <= 2; }));
  }
}

TEST_CASE("the first token that is not forced is the one that begin_suppress means") {
  const auto first = [&](const BeamOptions& options) { return search({5}, options).hypotheses.front().ids; };
  const auto free = first({.beams = 2, .max_new_tokens = 3});
  CHECK(first({.beams = 2, .max_new_tokens = 3, .begin_suppress = {free[0]}})[0] != free[0]);
  const auto forced = first({.beams = 2, .max_new_tokens = 3, .forced_bos = 42});
  const auto both =
      first({.beams = 2, .max_new_tokens = 3, .forced_bos = 42, .begin_suppress = {42, forced[1]}});
  CHECK(both[0] == 42);
  CHECK(both[1] != forced[1]);
}

TEST_CASE("a hypothesis says whether a stop token or the length ended it") {
  const auto result =
      search({5, 6}, {.beams = 8, .max_new_tokens = 3, .num_return = 8, .stop_ids = {1, 2, 3}});
  for (const auto& hypothesis : result.hypotheses) {
    const bool stopped = hypothesis.ids.back() >= 1 && hypothesis.ids.back() <= 3;
    CHECK(hypothesis.finish_reason == (stopped ? FinishReason::stop_token : FinishReason::length));
    CHECK((stopped || hypothesis.ids.size() == 3));
  }
}

TEST_CASE("progress counts the tokens and can cancel the search") {
  for (const std::size_t beams : {1u, 4u}) {
    std::vector<std::uint64_t> done;
    const auto count = [&](std::string_view stage, std::uint64_t now, std::uint64_t total) {
      CHECK(stage == "beam");
      CHECK(total == 6);
      done.push_back(now);
      return now < 4;
    };
    CHECK_THROWS_AS(search({5}, {.beams = beams, .max_new_tokens = 6}, 160, count), modicum::Cancelled);
    CHECK(done == std::vector<std::uint64_t>{1, 2, 3, 4});
  }
}

TEST_CASE("beam options that make no sense are named") {
  const auto message = [](const BeamOptions& options, std::size_t vocabulary = 160) {
    try {
      search({5}, options, vocabulary);
    } catch (const modicum::InvalidArgument& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const auto names = [&](const std::string& text, const std::string& field) {
    CAPTURE(text);
    CHECK(text.find("[beam] " + field) != std::string::npos);
  };
  names(message({.beams = 0}), "beams");
  names(message({.beams = 161}), "beams");
  names(message({.beams = 4, .groups = 3}), "groups");
  names(message({.stop = {"x"}}), "stop");
  names(message({.bad_words = {{}}}), "bad_words");
  names(message({.sequence_bias = {{{160}, 1.0f}}}), "sequence_bias");
  names(message({.diversity_penalty = -1.0}), "diversity_penalty");
  names(message({.sampling = {.temperature = -1.0}}), "temperature");
  names(message({.beams = 2, .num_return = 3}), "num_return");
  names(message({.num_return = 0}), "num_return");
  names(message({.max_new_tokens = 0}), "max_new_tokens");
  names(message({.max_new_tokens = 2, .min_new_tokens = 3}), "min_new_tokens");
  names(message({.length_penalty = nan}), "length_penalty");
  names(message({.repetition_penalty = -1.0}), "repetition_penalty");
  names(message({.stop_ids = {160}}), "stop_ids");
  names(message({.stop_ids = {0, 1, 2, 3}}, 4), "vocabulary");
}

TEST_CASE("logits that are not numbers end the search with an error") {
  toy::HashModel model;
  std::vector<float> logits = model.logits(1);
  logits[7] = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_AS(modicum::beam(model, 1, logits, {}, BeamOptions{}), modicum::InvalidArgument);
  CHECK_THROWS_AS(modicum::beam(model, 1, std::vector<float>(3), {}, BeamOptions{}),
                  modicum::InvalidArgument);
}
