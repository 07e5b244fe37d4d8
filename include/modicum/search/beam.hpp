// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <modicum/base/error.hpp>
#include <modicum/base/progress.hpp>
#include <modicum/decode/generate.hpp>
#include <modicum/decode/log_softmax.hpp>
#include <modicum/decode/processors.hpp>
#include <modicum/decode/step_model.hpp>
#include <modicum/search/scores.hpp>
#include <modicum/text/tokenizer.hpp>

namespace modicum {

/// When a search ends whose finished hypotheses fill all beams: transformers' early_stopping.
enum class EarlyStopping {
  no,     ///< False: when the best running beam, at its present length, cannot beat the worst finished one
  yes,    ///< True: at once
  never,  ///< "never": when it could not even at the length that favours it most
};

struct BeamOptions {
  std::size_t beams = 4;
  std::size_t max_new_tokens = 128;  ///< at least 1
  std::size_t min_new_tokens = 0;    ///< until then no stop token can be chosen
  double length_penalty = 1.0;  ///< a hypothesis's score is its sum of log-probabilities / length^penalty
  EarlyStopping early_stopping = EarlyStopping::no;
  std::size_t num_return = 1;       ///< hypotheses to return, 1 to `beams`
  std::vector<TokenId> stop_ids;    ///< end-of-sequence tokens
  double repetition_penalty = 1.0;  ///< applied to log-probabilities, over the prompt and the beam
};

struct Hypothesis {
  std::vector<TokenId> ids;  ///< the new tokens, with the stop token that ended them if one did
  float score;               ///< transformers' sequences_scores
  FinishReason finish_reason;
};

/// Best first. Fewer than `num_return` only where the model had fewer continuations to offer: transformers
/// then fills up with copies whose scores are about -1e9, which are left out here.
struct BeamResult {
  std::vector<Hypothesis> hypotheses;
};

/// Throws `InvalidArgument` naming the field that makes no sense.
inline void validate(const BeamOptions& o, std::size_t vocabulary) {
  if (o.beams == 0) {
    fail({.op = "beam", .what = "beams", .expected = "at least 1", .got = "0"});
  }
  if (o.num_return == 0 || o.num_return > o.beams) {
    fail({.op = "beam",
          .what = "num_return",
          .expected = "1 to beams (" + std::to_string(o.beams) + ")",
          .got = std::to_string(o.num_return)});
  }
  detail::check_lengths("beam", o.min_new_tokens, o.max_new_tokens);
  detail::check_stop_ids("beam", o.stop_ids, vocabulary);
  detail::check_range("beam", "length_penalty", o.length_penalty, std::isfinite(o.length_penalty),
                      "a finite number");
  detail::check_range("beam", "repetition_penalty", o.repetition_penalty,
                      o.repetition_penalty > 0.0 && std::isfinite(o.repetition_penalty),
                      "a finite number above 0");
  const std::size_t needed = std::max<std::size_t>(2, 1 + o.stop_ids.size());
  if (vocabulary < needed) {
    fail({.op = "beam",
          .what = "vocabulary",
          .expected = "at least " + std::to_string(needed) + " tokens, one more than stop_ids",
          .got = std::to_string(vocabulary)});
  }
}

namespace detail {

/// One call of `beam` with at least two beams, for one prompt. A step is transformers' `_beam_search` loop
/// body with the batch taken out: what it does to a prompt that is done while others in the batch are not
/// never happens here.
template <StepModel M>
class BeamSearch {
 public:
  using State = typename M::State;

  BeamSearch(M& model, State start, std::span<const float> start_logits, std::span<const TokenId> prompt,
             const BeamOptions& options, const Progress& progress)
      : model_(model),
        prompt_(prompt),
        options_(options),
        progress_(progress),
        vocabulary_(start_logits.size()),
        logits_(start_logits.begin(), start_logits.end()),
        penalty_(options.repetition_penalty, vocabulary_) {
    // All beams begin as one, on one row of logits: only the first may be chosen from while it offers enough.
    live_.reserve(options.beams);
    for (std::size_t i = 1; i < options.beams; ++i) {
      live_.push_back({.state = start, .score = kImpossibleScore, .row = 0});
    }
    live_.insert(live_.begin(), {.state = std::move(start), .score = 0.0f, .row = 0});
  }

  BeamResult run() {
    for (;;) {
      score_rows();
      const std::vector<Continuation> candidates = best_candidates();
      finish(candidates);
      ++length_;
      report(progress_, "beam", length_, options_.max_new_tokens);
      const std::vector<Continuation> running = keep_running(candidates);
      if (is_over(candidates, running.front().score)) {
        return result();
      }
      advance(running);
    }
  }

 private:
  struct Beam {
    State state;
    std::vector<TokenId> ids;
    float score;
    std::size_t row;
  };
  struct Finished {
    Hypothesis hypothesis;
    bool is_real;
  };

  bool is_stop(TokenId token) const {
    return std::ranges::find(options_.stop_ids, token) != options_.stop_ids.end();
  }
  /// Whether a continuation made in this step ends its hypothesis; asked before `length_` counts the step.
  bool ends(const Continuation& c) const {
    return length_ + 1 == options_.max_new_tokens || is_stop(c.token);
  }

  /// Turns each row of logits into log-probabilities after processors, which see log-probabilities and do not
  /// renormalise.
  void score_rows() {
    for (std::size_t row = 0; row * vocabulary_ < logits_.size(); ++row) {
      const std::span<float> scores(logits_.data() + row * vocabulary_, vocabulary_);
      log_softmax(scores);
      penalty_.apply(scores, prompt_, live_[row].ids);
      if (length_ < options_.min_new_tokens) {
        suppress(scores, options_.stop_ids);
      }
    }
  }

  /// As many as leave a full set of beams even if every beam's stop tokens rank first.
  std::vector<Continuation> best_candidates() {
    BestContinuations best(std::max<std::size_t>(2, 1 + options_.stop_ids.size()) * options_.beams);
    for (std::size_t i = 0; i < live_.size(); ++i) {
      best.add(i, live_[i].score,
               std::span<const float>(logits_.data() + live_[i].row * vocabulary_, vocabulary_));
    }
    return best.take();
  }

  /// Ended continuations among the first `beams` compete with the finished; one further down vanishes.
  void finish(const std::vector<Continuation>& candidates) {
    for (std::size_t i = 0; i < options_.beams; ++i) {
      const Continuation& c = candidates[i];
      const float score = length_normalised(c.score, length_ + 1, options_.length_penalty);
      if (!ends(c) || !(score > kImpossibleScore)) {
        continue;  // an empty place counts as kImpossibleScore, and among equals the older stays
      }
      std::vector<TokenId> ids = live_[c.beam].ids;
      ids.push_back(c.token);
      const auto worse = [&](const Finished& f) { return f.hypothesis.score < score; };
      const auto reason = is_stop(c.token) ? FinishReason::stop_token : FinishReason::length;
      finished_.insert(std::ranges::find_if(finished_, worse),
                       {{std::move(ids), score, reason}, c.score > kImpossibleScore / 2});
    }
    finished_.resize(std::min(finished_.size(), options_.beams));
  }

  /// The best `beams` to go on with. An ended one sinks by 1e9 and is used only for want of others.
  std::vector<Continuation> keep_running(std::vector<Continuation> candidates) const {
    for (Continuation& c : candidates) {
      c.score += is_stop(c.token) ? kImpossibleScore : 0.0f;
    }
    std::ranges::stable_sort(candidates, std::greater<>{}, &Continuation::score);
    candidates.resize(options_.beams);
    return candidates;
  }

  /// `best_running`: the score of the best beam that goes on; `length_` counts the step that was just made.
  bool is_over(const std::vector<Continuation>& candidates, float best_running) const {
    const bool all_end =
        std::ranges::all_of(candidates, [&](const Continuation& c) { return is_stop(c.token); });
    const bool is_full = finished_.size() == options_.beams;
    if (length_ == options_.max_new_tokens || all_end ||
        (is_full && options_.early_stopping == EarlyStopping::yes)) {
      return true;
    }
    const bool may_grow = options_.early_stopping == EarlyStopping::never && options_.length_penalty > 0.0;
    const float best_possible = length_normalised(best_running, may_grow ? options_.max_new_tokens : length_,
                                                  options_.length_penalty);
    return !(best_possible > (is_full ? finished_.back().hypothesis.score : kImpossibleScore));
  }

  /// Reads one token on each beam in one pass. Beams that nothing continues are dropped before it, so that
  /// their memory can serve the new ones, and the parents after it.
  void advance(const std::vector<Continuation>& running) {
    std::vector<Step<State>> steps;
    std::vector<std::vector<TokenId>> ids;
    steps.reserve(running.size());
    ids.reserve(running.size());
    for (const Continuation& c : running) {
      steps.push_back({live_[c.beam].state, c.token});
      ids.push_back(live_[c.beam].ids);
      ids.back().push_back(c.token);
    }
    live_.clear();
    logits_.resize(running.size() * vocabulary_);
    std::vector<State> states = model_.step(std::span<const Step<State>>(steps), std::span<float>(logits_));
    for (std::size_t i = 0; i < running.size(); ++i) {
      live_.push_back({std::move(states[i]), std::move(ids[i]), running[i].score, i});
    }
  }

  BeamResult result() {
    BeamResult result;
    for (Finished& f : finished_) {
      if (f.is_real && result.hypotheses.size() < options_.num_return) {
        result.hypotheses.push_back(std::move(f.hypothesis));
      }
    }
    return result;
  }

  M& model_;
  std::span<const TokenId> prompt_;
  const BeamOptions& options_;
  const Progress& progress_;
  std::size_t vocabulary_;
  std::vector<float> logits_;  ///< [rows, vocabulary], overwritten by log-probabilities
  RepetitionPenalty penalty_;
  std::vector<Beam> live_;
  std::vector<Finished> finished_;  ///< best first, at most `beams`
  std::size_t length_ = 0;          ///< new tokens of every live beam
};

/// One beam is greedy choice: the search ends at the first stop token, as in transformers, and the repetition
/// penalty applies to logits.
template <StepModel M>
BeamResult greedy(M& model, typename M::State start, std::span<const float> start_logits,
                  std::span<const TokenId> prompt, const BeamOptions& options, const Progress& progress) {
  std::size_t length = 0;
  const auto on_token = [&](const GeneratedToken&) {
    report(progress, "beam", ++length, options.max_new_tokens);
    return true;
  };
  auto result = generate(model, std::move(start), start_logits, prompt,
                         {.max_new_tokens = options.max_new_tokens,
                          .min_new_tokens = options.min_new_tokens,
                          .stop_ids = options.stop_ids,
                          .sampling = {.repetition_penalty = options.repetition_penalty}},
                         nullptr, on_token);
  float sum = 0.0f;
  for (const float log_probability : result.log_probabilities) {
    sum += log_probability;
  }
  const float score = length_normalised(sum, result.ids.size(), options.length_penalty);
  return {{{std::move(result.ids), score, result.finish_reason}}};
}

}  // namespace detail

/// Beam search, token for token that of transformers 5 `generate(num_beams=beams, do_sample=False)` for one
/// prompt on equal f32 logits (GenerationMixin._beam_search, _get_top_k_continuations,
/// _update_finished_beams, _check_early_stop_heuristic). Among equal scores the lower beam wins, then the
/// lower token; torch leaves that open.
///
/// `start` has read `prompt`, and `start_logits` (f32 [vocabulary]) are the logits after it: the prompt is
/// read once, whatever the number of beams. Every step reads one token on each beam in one call of
/// `model.step`; beams share what they have in common in the model's tree, and between steps there are at
/// most `beams` states. Memory of its own: beams × vocabulary floats.
///
/// Throws `InvalidArgument` for options that make no sense and for logits that are not numbers, `Cancelled`
/// when `progress` ("beam", tokens, max_new_tokens) returns false; what the model throws passes through.
template <StepModel M>
BeamResult beam(M& model, typename M::State start, std::span<const float> start_logits,
                std::span<const TokenId> prompt, const BeamOptions& options, const Progress& progress = {}) {
  const std::size_t vocabulary = model.vocabulary_size();
  detail::check_start_logits("beam", start_logits.size(), vocabulary);
  validate(options, vocabulary);
  if (options.beams == 1) {
    return detail::greedy(model, std::move(start), start_logits, prompt, options, progress);
  }
  return detail::BeamSearch<M>(model, std::move(start), start_logits, prompt, options, progress).run();
}

}  // namespace modicum
