// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include <modicum/base/error.hpp>
#include <modicum/base/progress.hpp>
#include <modicum/decode/generate.hpp>
#include <modicum/decode/step_model.hpp>
#include <modicum/search/beam_group.hpp>
#include <modicum/search/beam_options.hpp>
#include <modicum/search/search_tree.hpp>
#include <modicum/text/tokenizer.hpp>

namespace modicum {

/// A prompt to search from: `state` has read `prompt`, and `logits` (f32 [vocabulary]) are those after it.
/// `prompt` itself serves processors and stop strings.
template <class State>
struct BeamStart {
  State state;
  std::span<const float> logits;
  std::span<const TokenId> prompt;
};

namespace detail {

/// The search from one prompt: its groups of beams and the trie that they grow.
class PromptSearch {
 public:
  PromptSearch(const BeamOptions& options, const BeamHooks& hooks, std::span<const TokenId> prompt,
               std::size_t vocabulary, std::size_t number);

  bool is_done() const;
  /// One step of all groups that go on; each beam's row is then the one that its last token was chosen from.
  void select(std::span<const float> logits);
  /// Nodes of the tree before the last step.
  std::uint32_t first_new() const noexcept { return first_new_; }

  std::vector<BeamGroup>& groups() noexcept { return groups_; }
  const SearchTree& tree() const noexcept { return tree_; }
  BeamStats& stats() noexcept { return stats_; }
  /// Takes the worst beam from the widest group. False where no group has two.
  bool narrow();
  /// The tokens that no later step can change, beyond those told before.
  std::vector<TokenId> newly_stable();

  /// The best hypotheses over all groups, which are real.
  std::vector<Hypothesis> take_hypotheses();
  SearchTree take_tree() { return std::move(tree_); }

 private:
  std::vector<const FinishedBeam*> ranked() const;
  void count_live_tokens();

  const BeamOptions& options_;
  std::size_t vocabulary_;
  SearchTree tree_;
  std::uint32_t first_new_ = 0;
  std::vector<BeamGroup> groups_;
  BeamStats stats_;
  std::vector<float> penalties_;
  std::vector<std::uint32_t> seen_;  ///< by node: the step in which it was last found alive
  std::uint32_t told_ = SearchTree::kRoot;
};

/// One call of `beam_many`.
template <StepModel M>
class BeamSearch {
 public:
  using State = typename M::State;

  BeamSearch(M& model, std::vector<BeamStart<State>> starts, const BeamOptions& options,
             const BeamHooks& hooks)
      : model_(model), options_(options), hooks_(hooks), vocabulary_(model.vocabulary_size()) {
    kept_.resize(starts.size());
    for (std::size_t i = 0; i < starts.size(); ++i) {
      searches_.emplace_back(options, hooks, starts[i].prompt, vocabulary_, i);
      logits_.insert(logits_.end(), starts[i].logits.begin(), starts[i].logits.end());
      states_.push_back(std::move(starts[i].state));
    }
  }

  std::vector<BeamResult<State>> run() {
    for (std::size_t length = 1;; ++length) {
      for (std::size_t i = 0; i < searches_.size(); ++i) {
        if (searches_[i].is_done()) continue;
        searches_[i].select(logits_);
        if (options_.keep_states) keep_states(i);
      }
      report(hooks_.progress, "beam", length, options_.max_new_tokens);
      if (hooks_.on_stable) tell_stable();
      if (std::ranges::all_of(searches_, &PromptSearch::is_done)) return results();
      advance();
    }
  }

 private:
  /// Calls `use(search, beam)` for each live beam.
  template <class Use>
  void for_each_beam(Use use) {
    for (std::size_t i = 0; i < searches_.size(); ++i) {
      for (BeamGroup& group : searches_[i].groups()) {
        for (Beam& beam : group.beams()) use(i, beam);
      }
    }
  }

  /// Reads one token on each live beam in one pass, a token that several share once. States that nothing
  /// continues are dropped before it, so that their memory can serve the new ones, and the parents after it.
  void advance() {
    std::vector<Step<State>> steps;
    std::vector<std::vector<std::size_t>> rows(searches_.size());  // of each new node; kNone: no beam's
    for_each_beam([&](std::size_t i, Beam& beam) {
      const std::uint32_t first = searches_[i].first_new();
      rows[i].resize(searches_[i].tree().size() - first, kNone);
      std::size_t& row = rows[i][beam.node - first];
      if (row == kNone) {
        row = steps.size();
        steps.push_back({states_[beam.row], searches_[i].tree()[beam.node].token});
        ++searches_[i].stats().rows;
      }
      beam.row = row;
    });
    states_.clear();
    for (;;) {
      logits_.resize(steps.size() * vocabulary_);
      try {
        states_ = model_.step(std::span<const Step<State>>(steps), std::span<float>(logits_));
        return;
      } catch (const OutOfMemory&) {
        if (options_.when_full == WhenFull::fail || !narrow(steps)) throw;
      }
    }
  }

  /// Gives up the worst beam of every search that has another. False where none has.
  bool narrow(std::vector<Step<State>>& steps) {
    bool narrowed = false;
    for (PromptSearch& search : searches_) narrowed |= search.narrow();
    if (!narrowed) return false;
    std::vector<std::size_t> place(steps.size(), kNone);
    std::vector<Step<State>> left;
    for_each_beam([&](std::size_t, Beam& beam) {
      if (place[beam.row] == kNone) {
        place[beam.row] = left.size();
        left.push_back(std::move(steps[beam.row]));
      }
      beam.row = place[beam.row];
    });
    steps = std::move(left);
    return true;
  }

  /// Holds the parents of hypotheses that have just ended, and lets go of those that were displaced.
  void keep_states(std::size_t i) {
    std::map<std::uint32_t, State> kept;
    for (const BeamGroup& group : searches_[i].groups()) {
      for (const FinishedBeam& f : group.finished()) {
        if (const auto old = kept_[i].find(f.node); old != kept_[i].end()) {
          kept.insert(*old);
        } else {
          kept.emplace(f.node, states_[f.parent_row]);
        }
      }
    }
    kept_[i] = std::move(kept);
  }

  void tell_stable() {
    const std::vector<TokenId> ids = searches_.front().newly_stable();
    if (!ids.empty()) hooks_.on_stable(ids);
  }

  std::vector<BeamResult<State>> results() {
    std::vector<BeamResult<State>> results;
    for (std::size_t i = 0; i < searches_.size(); ++i) {
      BeamResult<State> result{.hypotheses = searches_[i].take_hypotheses(),
                               .tree = {},
                               .stats = searches_[i].stats(),
                               .states = {}};
      for (const Hypothesis& h : result.hypotheses) {
        if (options_.keep_states) result.states.push_back(kept_[i].at(h.node));
      }
      result.tree = searches_[i].take_tree();
      results.push_back(std::move(result));
    }
    return results;
  }

  static constexpr std::size_t kNone = static_cast<std::size_t>(-1);

  M& model_;
  const BeamOptions& options_;
  const BeamHooks& hooks_;
  std::size_t vocabulary_;
  std::vector<PromptSearch> searches_;
  std::vector<State> states_;  ///< of each row of `logits_`
  std::vector<float> logits_;  ///< [rows, vocabulary]
  std::vector<std::map<std::uint32_t, State>> kept_;
};

}  // namespace detail

/// Beam search from several prompts in lockstep: each step of the model reads one token on every beam of all
/// that go on, so its weights, and the keys and values that beams share, are read once. Each result is what
/// `beam` gives for that prompt alone (but for sampling, whose draws differ). Throws as `beam`.
template <StepModel M>
std::vector<BeamResult<typename M::State>> beam_many(M& model,
                                                     std::vector<BeamStart<typename M::State>> starts,
                                                     const BeamOptions& options,
                                                     const BeamHooks& hooks = {}) {
  const std::size_t vocabulary = model.vocabulary_size();
  for (const auto& start : starts) detail::check_start_logits("beam", start.logits.size(), vocabulary);
  validate(options, hooks, vocabulary);
  if (starts.empty()) return {};
  return detail::BeamSearch<M>(model, std::move(starts), options, hooks).run();
}

/// Beam search; with `BeamMode::transformers` token for token that of transformers 5
/// `generate(num_beams=beams)` for one prompt on equal f32 logits (GenerationMixin._beam_search,
/// _get_top_k_continuations, _update_finished_beams, _check_early_stop_heuristic). Among equal scores the
/// lower beam wins, then the lower token; torch leaves that open.
///
/// `start` has read `prompt`, and `start_logits` (f32 [vocabulary]) are the logits after it: the prompt is
/// read once, whatever the number of beams. Every step reads one token on each beam in one call of
/// `model.step`; beams share what they have in common in the model's tree, and between steps there are at
/// most `beams` states. Memory of its own: beams × vocabulary floats.
///
/// Throws `InvalidArgument` for options that make no sense, for logits that are not numbers, and where
/// nothing that the constraint allows fits into `max_new_tokens`; `Cancelled` when `hooks.progress` returns
/// false; what the model and the constraint throw passes through.
template <StepModel M>
BeamResult<typename M::State> beam(M& model, typename M::State start, std::span<const float> start_logits,
                                   std::span<const TokenId> prompt, const BeamOptions& options,
                                   const BeamHooks& hooks = {}) {
  std::vector<BeamStart<typename M::State>> one;
  one.push_back({std::move(start), start_logits, prompt});
  return std::move(beam_many(model, std::move(one), options, hooks).front());
}

}  // namespace modicum
