// SPDX-License-Identifier: Apache-2.0
// What a search tells as certain while it goes on.
#include <algorithm>
#include <span>
#include <vector>

#include <modicum/search/beam.hpp>

#include "decode/toy_model.hpp"
#include "support/catch.hpp"

using modicum::BeamOptions;
using modicum::TokenId;
using Path = std::vector<TokenId>;

namespace {

const Path kPrompt{5, 6, 7};

bool begins_with(const Path& path, const Path& prefix) {
  return path.size() >= prefix.size() && std::equal(prefix.begin(), prefix.end(), path.begin());
}

/// `HashModel` whose states are the tokens after the prompt: a step shows all live beams.
struct PathModel {
  using State = Path;
  std::size_t vocabulary = 40;
  Path told = {};
  bool are_certain = true;  ///< every beam that was seen began with `told`
  std::vector<std::size_t> lengths_told = {};
  std::vector<std::size_t> lengths_shared = {};

  std::size_t vocabulary_size() const { return vocabulary; }

  std::vector<float> logits(const Path& path) const {
    return toy::HashModel{vocabulary}.logits(toy::HashModel::read_all(path));
  }

  std::vector<State> step(std::span<const modicum::Step<State>> steps, std::span<float> out) {
    std::vector<State> states;
    for (const auto& s : steps) {
      states.push_back(s.parent);
      states.back().push_back(s.token);
      std::ranges::copy(logits(states.back()),
                        out.begin() + static_cast<std::ptrdiff_t>((states.size() - 1) * vocabulary));
    }
    for (const Path& path : states) are_certain = are_certain && begins_with(path, told);
    lengths_told.push_back(told.size());
    lengths_shared.push_back(shared(states));
    return states;
  }

  static std::size_t shared(const std::vector<Path>& paths) {
    std::size_t length = paths.front().size();
    for (const Path& path : paths) {
      const auto end = std::ranges::mismatch(path, paths.front()).in1;
      length = std::min(length, static_cast<std::size_t>(end - path.begin()));
    }
    return length;
  }
};

struct Told {
  PathModel model;
  Path best;
};

Told search(const BeamOptions& options) {
  Told result;
  PathModel& model = result.model;
  const auto on_stable = [&](std::span<const TokenId> ids) {
    CHECK(!ids.empty());
    model.told.insert(model.told.end(), ids.begin(), ids.end());
  };
  result.best = modicum::beam(model, {}, model.logits({}), kPrompt, options, {.on_stable = on_stable})
                    .hypotheses.front()
                    .ids;
  return result;
}

}  // namespace

TEST_CASE("every live beam and the best hypothesis begin with what was told") {
  for (const std::size_t beams : {1u, 2u, 4u, 9u}) {
    for (const auto mode : {modicum::BeamMode::transformers, modicum::BeamMode::native}) {
      for (const Path& stops : {Path{}, Path{1}, Path{1, 2, 3}}) {
        for (const std::size_t groups : {1u, static_cast<unsigned>(beams)}) {
          CAPTURE(beams, groups, stops, static_cast<int>(mode));
          const Told found = search({.beams = beams,
                                     .max_new_tokens = 40,
                                     .stop_ids = stops,
                                     .groups = groups,
                                     .diversity_penalty = 0.5,
                                     .mode = mode});
          CHECK(found.model.are_certain);
          CHECK(begins_with(found.best, found.model.told));
        }
      }
    }
  }
}

TEST_CASE("tokens are told as soon as all live beams share them") {
  const Told found = search({.beams = 4, .max_new_tokens = 60});
  CHECK(found.model.lengths_told == found.model.lengths_shared);
  CHECK(found.model.lengths_told.back() > 30);
}

TEST_CASE("a single beam tells each token at once") {
  const Told found = search({.beams = 1, .max_new_tokens = 12});
  CHECK(found.model.lengths_told.size() == 11);
  for (std::size_t i = 0; i < found.model.lengths_told.size(); ++i) {
    CHECK(found.model.lengths_told[i] == i + 1);
  }
}
