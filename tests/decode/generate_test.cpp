// SPDX-License-Identifier: Apache-2.0
#include <limits>
#include <string>
#include <vector>

#include <modicum/decode/generate.hpp>

#include "decode/toy_model.hpp"
#include "support/catch.hpp"

using modicum::FinishReason;
using modicum::GeneratedToken;
using modicum::GenerateOptions;
using modicum::TokenId;

namespace {

/// Byte-level: "a" "b" "c" " ", the two bytes of "é" (4, 5), and the special token "<end>" (6).
modicum::Tokenizer tokenizer() {
  return modicum::Tokenizer::parse(R"({
    "version": "1.0", "truncation": null, "padding": null,
    "added_tokens": [{"id": 6, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": false,
                      "normalized": false, "special": true}],
    "normalizer": null,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
    "post_processor": null,
    "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
    "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
              "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
              "vocab": {"a": 0, "b": 1, "c": 2, "Ġ": 3, "Ã": 4, "©": 5, "<end>": 6}, "merges": []}})");
}

auto run_hash(const GenerateOptions& options, const std::vector<TokenId>& prompt = {5, 6, 7},
              const modicum::TokenCallback& callback = {}) {
  toy::HashModel model;
  const auto state = toy::HashModel::read_all(prompt);
  return modicum::generate(model, state, model.logits(state), prompt, options, nullptr, callback);
}

struct Streamed {
  modicum::GenerateResult<std::size_t> result;
  std::vector<std::string> pieces;
};

Streamed run_script(const std::vector<TokenId>& script, GenerateOptions options,
                    std::size_t cancel_after = std::numeric_limits<std::size_t>::max()) {
  toy::ScriptModel model{7, script};
  const modicum::Tokenizer text = tokenizer();
  options.max_new_tokens = std::min(options.max_new_tokens, script.size());
  std::vector<std::string> pieces;
  auto result =
      modicum::generate(model, 0, model.logits(0), {}, options, &text, [&](const GeneratedToken& t) {
        pieces.emplace_back(t.text);
        return pieces.size() < cancel_after;
      });
  return {std::move(result), std::move(pieces)};
}

}  // namespace

TEST_CASE("greedy generation follows the likeliest token and reports its log-probability") {
  toy::HashModel model;
  const std::vector<TokenId> prompt{5, 6, 7};
  const auto result = run_hash({.max_new_tokens = 12});
  REQUIRE(result.ids.size() == 12);
  CHECK(result.finish_reason == FinishReason::length);
  CHECK(result.text.empty());
  auto state = toy::HashModel::read_all(prompt);
  for (std::size_t i = 0; i < 12; ++i) {
    auto logits = model.logits(state);
    CHECK(result.ids[i] == std::ranges::max_element(logits) - logits.begin());
    modicum::log_softmax(logits);
    CHECK(result.log_probabilities[i] == logits[static_cast<std::size_t>(result.ids[i])]);
    if (i + 1 < 12) {
      state = toy::HashModel::read(state, result.ids[i]);
    }
  }
  CHECK(result.state == state);  // all but the last token
}

TEST_CASE("a stop token ends the text and is among the ids") {
  const auto free = run_hash({.max_new_tokens = 12});
  const auto stopped = run_hash({.max_new_tokens = 12, .stop_ids = {159, free.ids[4]}});
  const auto first = std::ranges::find(free.ids, free.ids[4]) - free.ids.begin();
  CHECK(stopped.finish_reason == FinishReason::stop_token);
  CHECK(stopped.ids == std::vector<TokenId>(free.ids.begin(), free.ids.begin() + first + 1));
}

TEST_CASE("before min_new_tokens no stop token is chosen") {
  const std::vector<TokenId> stops{run_hash({.max_new_tokens = 1}).ids[0], 1, 2, 3};
  for (const std::size_t least : {1u, 3u, 6u}) {
    const auto result = run_hash({.max_new_tokens = 6, .min_new_tokens = least, .stop_ids = stops});
    REQUIRE(result.ids.size() >= least);
    for (std::size_t i = 0; i < least; ++i) {
      CHECK(std::ranges::find(stops, result.ids[i]) == stops.end());
    }
  }
}

TEST_CASE("log-probabilities are the model's own, whatever is filtered or penalised") {
  toy::HashModel model;
  const auto result = run_hash(
      {.max_new_tokens = 5, .sampling = {.temperature = 3.0, .top_k = 4, .repetition_penalty = 1.7}});
  auto state = toy::HashModel::read_all(std::vector<TokenId>{5, 6, 7});
  for (std::size_t i = 0; i < 5; ++i) {
    auto logits = model.logits(state);
    modicum::log_softmax(logits);
    CHECK(result.log_probabilities[i] == logits[static_cast<std::size_t>(result.ids[i])]);
    state = toy::HashModel::read(state, result.ids[i]);
  }
}

TEST_CASE("a strong repetition penalty keeps a text from repeating itself or its prompt") {
  const auto result = run_hash({.max_new_tokens = 60, .sampling = {.repetition_penalty = 1000.0}}, {1, 2, 3});
  std::set<TokenId> seen{1, 2, 3};
  for (const TokenId id : result.ids) {
    CHECK(seen.insert(id).second);
  }
}

TEST_CASE("the same seed samples the same text") {
  const GenerateOptions options{.max_new_tokens = 30, .sampling = {.temperature = 5.0, .seed = 42}};
  CHECK(run_hash(options).ids == run_hash(options).ids);
  GenerateOptions other = options;
  other.sampling.seed = 43;
  CHECK(run_hash(options).ids != run_hash(other).ids);
}

TEST_CASE("the callback sees each token in order and can end the generation") {
  std::vector<TokenId> seen;
  const auto result = run_hash({.max_new_tokens = 12}, {5, 6, 7}, [&](const GeneratedToken& t) {
    seen.push_back(t.id);
    return seen.size() < 4;
  });
  CHECK(result.finish_reason == FinishReason::cancelled);
  CHECK(seen.size() == 4);
  CHECK(result.ids == seen);
}

TEST_CASE("text streams in whole characters and without special tokens") {
  const auto [result, pieces] = run_script({0, 4, 5, 3, 6, 1}, {});
  CHECK(result.text == "a\u00e9 b");
  CHECK(pieces.size() == 6);
  std::string joined;
  for (const auto& piece : pieces) {
    joined += piece;
    CHECK(piece != "\xc3");
  }
  CHECK(joined == result.text);
}

TEST_CASE("a stop token is not part of the text") {
  const auto [result, pieces] = run_script({0, 1, 2, 0}, {.stop_ids = {2}});
  CHECK(result.text == "ab");
  CHECK(result.ids == std::vector<TokenId>{0, 1, 2});
  CHECK(result.finish_reason == FinishReason::stop_token);
}

TEST_CASE("a stop string ends the text before it, and no piece shows its beginning") {
  const auto [result, pieces] = run_script({0, 1, 2, 1, 0, 2}, {.stop = {"cba"}});
  CHECK(result.text == "ab");
  CHECK(result.ids == std::vector<TokenId>{0, 1, 2, 1, 0});
  CHECK(result.finish_reason == FinishReason::stop_string);
  CHECK(pieces == std::vector<std::string>{"a", "b", "", "", ""});
}

TEST_CASE("what was held back for a stop string that did not come is part of the text") {
  const auto at_length = run_script({0, 1, 2}, {.stop = {"bcd"}});
  CHECK(at_length.result.text == "abc");
  CHECK(at_length.pieces == std::vector<std::string>{"a", "", "bc"});
  const auto at_stop = run_script({0, 1, 6}, {.stop_ids = {6}, .stop = {"bcd"}});
  CHECK(at_stop.pieces == std::vector<std::string>{"a", "", "b"});
  const auto cancelled = run_script({0, 1, 2, 0}, {.stop = {"bcd"}}, 2);
  CHECK(cancelled.result.finish_reason == FinishReason::cancelled);
  CHECK(cancelled.result.text == "ab");
}

TEST_CASE("half a character at the end becomes a replacement character") {
  CHECK(run_script({0, 4}, {}).result.text == "a\ufffd");
}

TEST_CASE("generation refuses options that make no sense") {
  CHECK_THROWS_AS(run_hash({.max_new_tokens = 0}), modicum::InvalidArgument);
  CHECK_THROWS_AS(run_hash({.max_new_tokens = 2, .min_new_tokens = 3}), modicum::InvalidArgument);
  CHECK_THROWS_AS(run_hash({.stop_ids = {160}}), modicum::InvalidArgument);
  CHECK_THROWS_AS(run_hash({.stop_ids = {-1}}), modicum::InvalidArgument);
  CHECK_THROWS_AS(run_hash({.stop = {"x"}}), modicum::InvalidArgument);
  CHECK_THROWS_AS(run_hash({.sampling = {.temperature = -1.0}}), modicum::InvalidArgument);
  toy::HashModel model;
  CHECK_THROWS_AS(modicum::generate(model, 1, std::vector<float>(3), {}, {}), modicum::InvalidArgument);
}
