// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <modicum/decode/random.hpp>
#include <modicum/search/beam_options.hpp>
#include <modicum/search/score_processors.hpp>
#include <modicum/search/scores.hpp>
#include <modicum/search/search_tree.hpp>

namespace modicum::detail {

/// A state of a constraint, released with its last owner.
class ConstraintState {
 public:
  ConstraintState() = default;
  ConstraintState(const Constraint* constraint, Constraint::State state)
      : constraint_(constraint), state_(state) {}
  ConstraintState(ConstraintState&& other) noexcept
      : constraint_(std::exchange(other.constraint_, nullptr)), state_(other.state_) {}
  ConstraintState& operator=(ConstraintState&& other) noexcept {
    std::swap(constraint_, other.constraint_);
    std::swap(state_, other.state_);
    return *this;
  }
  ~ConstraintState() {
    if (constraint_ != nullptr) constraint_->release(state_);
  }
  Constraint::State get() const noexcept { return state_; }

 private:
  const Constraint* constraint_ = nullptr;
  Constraint::State state_ = 0;
};

/// A hypothesis that goes on. Beams that are none (see `BeamMode`) share the node of a real one.
struct Beam {
  std::uint32_t node;
  float score;
  std::size_t row;  ///< of the logits of its next token
  ConstraintState state;
};

/// A hypothesis that ended.
struct FinishedBeam {
  std::uint32_t node;
  float score;  ///< normalised
  FinishReason reason;
  bool is_real;
  std::size_t parent_row;  ///< the row that its last token was chosen from
};

/// The beams of one prompt that compete with each other: all of them, or a group of diverse beam search. A
/// step is transformers' `_beam_search` loop body with the batch taken out: what it does to a prompt that is
/// done while others in the batch are not never happens here. It knows rows of logits, not the model.
class BeamGroup {
 public:
  /// All beams begin as one, on row `start_row`. `options`, `hooks` and `prompt` must outlive this.
  BeamGroup(const BeamOptions& options, const BeamHooks& hooks, std::span<const TokenId> prompt,
            std::size_t vocabulary, std::size_t width, std::size_t start_row, std::uint64_t seed);

  /// Chooses what the beams go on with, and notes what ended. `logits`: f32 [rows, vocabulary].
  /// `penalties` (f32 [vocabulary], or none) count against tokens that earlier groups chose in this step. New
  /// tokens become nodes of `tree`, `first_new` being the first of this step.
  void select(SearchTree& tree, std::uint32_t first_new, std::span<const float> logits,
              std::span<const float> penalties);

  bool is_done() const noexcept { return done_; }
  /// Empty when it is done.
  std::vector<Beam>& beams() noexcept { return beams_; }
  const std::vector<Beam>& beams() const noexcept { return beams_; }
  /// The token that each beam chose in the last step, for diversity; those of beams that are done since too.
  const std::vector<TokenId>& chosen() const noexcept { return chosen_; }
  /// Best first.
  const std::vector<FinishedBeam>& finished() const noexcept { return finished_; }
  std::size_t width() const noexcept { return width_; }

  /// Goes on with one beam fewer. False where one is left.
  bool narrow();

 private:
  /// A continuation, and what becomes of it.
  struct Candidate {
    Continuation continuation;
    std::optional<FinishReason> end = std::nullopt;
    bool goes_on = true;
    bool may_end = true;       ///< the constraint lets the text end here
    bool is_examined = false;  ///< whether the constraint was asked yet
    std::size_t progress = 0;  ///< towards what the constraint requires
    ConstraintState state = {};
  };
  /// What `select` was given.
  struct Step {
    SearchTree& tree;
    std::uint32_t first_new;
    std::span<const float> logits;
    std::span<const float> penalties;
  };

  bool is_stop(TokenId token) const;
  bool is_exact() const noexcept { return options_.mode == BeamMode::transformers; }
  bool is_sampling() const noexcept { return options_.sampling.temperature > 0.0; }
  /// One beam is greedy choice or plain sampling: by logits, ending at the first stop token.
  bool is_single() const { return options_.beams == 1 && required() == 0; }
  std::size_t required() const { return hooks_.constraint ? hooks_.constraint->required() : 0; }

  void read_row(const Step& step, const Beam& beam);
  std::vector<Candidate> candidates(const Step& step);
  void offer(std::size_t beam, float score, BestContinuations& best, std::vector<Continuation>& wanted);
  TokenId checked(TokenId token) const;
  void offer_stops(std::size_t beam, float score, const AllowedTokens& allowed, BestContinuations& best);
  void score_single(const Step& step, Continuation& chosen) const;
  std::optional<FinishReason> end_of(const Step& step, const Continuation& continuation);
  bool ends_in_stop_string(const Step& step, const Continuation& continuation);
  void examine(Candidate& candidate);
  void finish(const Step& step, std::vector<Candidate>& candidates);
  void keep_running(const Step& step, std::vector<Candidate>& candidates);
  void note_chosen(const Step& step, const std::vector<Candidate>& candidates);
  std::vector<std::size_t> by_score(const std::vector<Candidate>& candidates) const;
  void spread_over_banks(std::vector<Candidate>& candidates, std::vector<std::size_t>& order);
  bool may_run(Candidate& candidate);
  void prune();
  bool is_over(bool all_end) const;
  std::uint32_t node_of(const Step& step, const Continuation& continuation) const;

  const BeamOptions& options_;
  const BeamHooks& hooks_;
  std::span<const TokenId> prompt_;
  std::size_t vocabulary_;
  std::size_t width_;
  ScoreProcessors processors_;
  Random random_;
  std::vector<Beam> beams_;  ///< best first
  std::vector<TokenId> chosen_;
  std::vector<FinishedBeam> finished_;  ///< best first
  std::size_t length_ = 0;              ///< new tokens of every live beam
  bool done_ = false;
  RowScores row_;
  std::vector<float> copy_;        ///< of the row, where processors change it
  std::vector<TokenId> sequence_;  ///< prompt and beam
  AllowedScratch scratch_;
};

}  // namespace modicum::detail
