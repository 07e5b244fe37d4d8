// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <stdexcept>
#include <vector>

#include <modicum/search/beam.hpp>

#include "decode/toy_model.hpp"
#include "support/catch.hpp"

using modicum::BeamOptions;
using modicum::TokenId;

namespace {

const std::vector<TokenId> kPrompt{5, 6, 7};

modicum::BeamResult<toy::TreeModel::State> search(toy::TreeModel& model, const BeamOptions& options) {
  toy::TreeModel::State start = model.start(kPrompt);
  const std::vector<float> logits = model.logits(start);
  return modicum::beam(model, std::move(start), logits, kPrompt, options);
}

}  // namespace

TEST_CASE("after a step there are as many states as beams, and no other handle") {
  for (const std::size_t beams : {1u, 2u, 5u, 16u}) {
    toy::TreeModel model;
    search(model, {.beams = beams, .max_new_tokens = 40});
    REQUIRE(model.snapshots.size() == 39);
    CHECK(std::ranges::all_of(model.snapshots, [&](const auto& snapshot) {
      return snapshot.steps == beams && snapshot.handles == beams;
    }));
  }
}

TEST_CASE("memory goes in the step in which its last descendant dies") {
  toy::TreeModel model;
  search(model, {.beams = 5, .max_new_tokens = 60, .stop_ids = {1, 2, 3}});
  REQUIRE(!model.snapshots.empty());
  CHECK(std::ranges::all_of(model.snapshots, [](const auto& snapshot) {
    return snapshot.nodes_alive == snapshot.nodes_reachable;
  }));
}

TEST_CASE("beams share what they have in common") {
  toy::TreeModel model;
  search(model, {.beams = 8, .max_new_tokens = 60});
  const auto& last = model.snapshots.back();
  CHECK(last.nodes_alive < 59u + 8u * 20u);  // one path and short tips, not 8 paths of 59
}

TEST_CASE("nothing stays alive after a search, even if the model fails") {
  toy::TreeModel model;
  search(model, {.beams = 5, .max_new_tokens = 10});
  CHECK(model.handles == 0);
  CHECK(model.nodes == 0);
  model.snapshots.clear();
  model.fail_at = 4;
  CHECK_THROWS_AS(search(model, {.beams = 5, .max_new_tokens = 10}), std::runtime_error);
  CHECK(model.handles == 0);
  CHECK(model.nodes == 0);
}
