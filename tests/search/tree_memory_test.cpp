// SPDX-License-Identifier: Apache-2.0
// What a search holds of a transformer's keys and values.
#include <algorithm>
#include <cstring>
#include <optional>
#include <set>
#include <span>
#include <stdexcept>
#include <vector>

#include <modicum/decode/tree_step_model.hpp>
#include <modicum/search/beam.hpp>

#include "base/temporary_directory.hpp"
#include "model/random_model.hpp"
#include "support/catch.hpp"

using namespace modicum;
using Path = std::vector<TokenId>;

namespace {

const Path kPrompt{5, 60, 7, 30, 42};

/// Tokens after the prompt that the paths hold together, shared ones once.
std::size_t union_of(const std::vector<Branch>& leaves) {
  std::set<Path> prefixes;
  for (const Branch& leaf : leaves) {
    Path path = leaf.tokens();
    for (; path.size() > kPrompt.size(); path.pop_back()) prefixes.insert(path);
  }
  return prefixes.size();
}

struct Read {
  Path path;
  std::vector<float> logits;
};

/// A transformer on a tree of its own that notes what the tree holds before and after each step.
class WatchedModel {
 public:
  using State = Branch;

  WatchedModel(const Transformer& transformer, std::size_t max_kv_bytes)
      : tree(transformer.tree(max_kv_bytes)), model_(transformer, tree) {}

  std::size_t vocabulary_size() const { return model_.vocabulary_size(); }

  std::vector<Branch> step(std::span<const Step<Branch>> steps, std::span<float> logits) {
    std::vector<Branch> parents;
    for (const Step<Branch>& s : steps) parents.push_back(s.parent);
    holds_live_paths = holds_live_paths && tree.rows_in_use() == kPrompt.size() + union_of(parents);
    if (++steps_ == fail_at) throw std::runtime_error("out of luck");
    std::vector<Branch> leaves = model_.step(steps, logits);
    const std::size_t live = union_of(leaves);
    holds_live_paths = holds_live_paths && tree.rows_in_use() == kPrompt.size() + live;
    peak = std::max(peak, live);
    for (std::size_t i = 0; i < leaves.size(); ++i) {
      const auto row = logits.subspan(i * vocabulary_size(), vocabulary_size());
      read.push_back({leaves[i].tokens(), {row.begin(), row.end()}});
    }
    return leaves;
  }

  KvTree tree;
  std::size_t fail_at = 0;
  bool holds_live_paths = true;
  std::size_t peak = 0;
  std::vector<Read> read;

 private:
  TreeStepModel model_;
  std::size_t steps_ = 0;
};

/// A random model, and searches with it that begin at `kPrompt`.
struct Fixture {
  TemporaryDirectory directory;
  Checkpoint checkpoint = random_checkpoint(directory.path(), tiny_config("llama", 2));
  Transformer transformer{checkpoint.config(), ModelWeights::load(checkpoint), 1};

  WatchedModel watched(std::size_t max_kv_bytes = 0) { return {transformer, max_kv_bytes}; }

  /// The logits after `path`, read in one go on a tree of its own.
  std::vector<float> fresh(const Path& path) {
    const KvTree tree = transformer.tree();
    const Extension extension{tree.root(), path};
    const std::vector<Branch> leaf = transformer.extend(tree, {&extension, 1});
    std::vector<float> logits(transformer.config().vocab_size);
    transformer.logits(leaf, logits);
    return logits;
  }

  BeamResult<Branch> search(WatchedModel& model, const BeamOptions& options, const BeamHooks& hooks = {}) {
    const Extension extension{model.tree.root(), kPrompt};
    std::vector<Branch> start = transformer.extend(model.tree, {&extension, 1});
    std::vector<float> logits(model.vocabulary_size());
    transformer.logits(start, logits);
    Branch leaf = std::move(start.front());
    return beam(model, std::move(leaf), logits, kPrompt, options, hooks);
  }
};

bool same_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

std::vector<BeamOptions> kinds_of_search() {
  return {{.beams = 1, .max_new_tokens = 24},
          {.beams = 5, .max_new_tokens = 30},
          {.beams = 8, .max_new_tokens = 40, .num_return = 8, .stop_ids = {1, 2, 3}},
          {.beams = 6, .max_new_tokens = 20, .num_return = 6, .groups = 3, .diversity_penalty = 2.0},
          {.beams = 4, .max_new_tokens = 20, .sampling = {.temperature = 1.0, .seed = 3}},
          {.beams = 6, .max_new_tokens = 30, .stop_ids = {1, 2, 3, 4, 5}, .mode = BeamMode::native}};
}

}  // namespace

TEST_CASE("the tree holds the prompt and the union of the live paths, and nothing after the search") {
  Fixture fixture;
  for (const BeamOptions& options : kinds_of_search()) {
    CAPTURE(options.beams, options.groups, static_cast<int>(options.mode));
    WatchedModel model = fixture.watched();
    const auto result = fixture.search(model, options);
    CHECK(model.holds_live_paths);
    CHECK(model.peak == result.stats.peak_tokens);
    CHECK(model.read.size() == result.stats.rows);
    CHECK(model.tree.rows_in_use() == 0);
  }
}

TEST_CASE("a beam's logits are bit for bit those of reading its path alone") {
  Fixture fixture;
  for (const BeamOptions& options : kinds_of_search()) {
    WatchedModel model = fixture.watched();
    fixture.search(model, options);
    for (std::size_t i = 0; i < model.read.size(); i += 5) {
      REQUIRE(same_bits(model.read[i].logits, fixture.fresh(model.read[i].path)));
    }
  }
}

TEST_CASE("states that are kept have read their hypothesis but for its last token, and go on from there") {
  Fixture fixture;
  for (BeamOptions options : kinds_of_search()) {
    options.keep_states = true;
    WatchedModel model = fixture.watched();
    {
      const auto result = fixture.search(model, options);
      REQUIRE(result.states.size() == result.hypotheses.size());
      CHECK(model.tree.rows_in_use() == kPrompt.size() + union_of(result.states));
      for (std::size_t i = 0; i < result.states.size(); ++i) {
        Path path = kPrompt;
        path.insert(path.end(), result.hypotheses[i].ids.begin(), result.hypotheses[i].ids.end());
        CHECK(result.states[i].tokens() == Path(path.begin(), path.end() - 1));
        TreeStepModel plain(fixture.transformer, model.tree);
        const Step<Branch> last{result.states[i], path.back()};
        std::vector<float> logits(model.vocabulary_size());
        plain.step({&last, 1}, logits);
        CHECK(same_bits(logits, fixture.fresh(path)));
      }
    }
    CHECK(model.tree.rows_in_use() == 0);
  }
}

TEST_CASE("all memory returns when the model fails or the search is cancelled") {
  Fixture fixture;
  for (BeamOptions options : kinds_of_search()) {
    for (const bool keeps : {false, true}) {
      options.keep_states = keeps;
      WatchedModel failing = fixture.watched();
      failing.fail_at = 4;
      CHECK_THROWS_AS(fixture.search(failing, options), std::runtime_error);
      CHECK(failing.tree.rows_in_use() == 0);

      WatchedModel cancelled = fixture.watched();
      const auto until_5 = [](std::string_view, std::uint64_t done, std::uint64_t) { return done < 5; };
      CHECK_THROWS_AS(fixture.search(cancelled, options, {.progress = until_5}), Cancelled);
      CHECK(cancelled.tree.rows_in_use() == 0);
    }
  }
}

TEST_CASE("a search that does not fit fails and returns its memory, or goes on with fewer beams") {
  Fixture fixture;
  const std::size_t row = fixture.transformer.kv_shape().token_bytes();
  const BeamOptions wide{.beams = 16, .max_new_tokens = 40, .num_return = 16};
  std::optional<std::size_t> narrowed;
  for (std::size_t rows = kPrompt.size() + 8; rows < 400; rows *= 2) {
    BeamOptions options = wide;
    WatchedModel small = fixture.watched(rows * row);
    bool fits = true;
    try {
      fixture.search(small, options);
    } catch (const OutOfMemory&) {
      fits = false;
    }
    CHECK(small.tree.rows_in_use() == 0);
    options.when_full = WhenFull::narrow;
    WatchedModel again = fixture.watched(rows * row);
    try {
      const auto result = fixture.search(again, options);
      CHECK((result.stats.width == 16) == fits);
      if (!fits) narrowed = result.stats.width;
      CHECK(result.hypotheses.front().ids.size() == 40);
    } catch (const OutOfMemory&) {
      CHECK(rows < kPrompt.size() + 40);  // not even one beam
    }
    CHECK(again.tree.rows_in_use() == 0);
  }
  CHECK(narrowed.has_value());
}
