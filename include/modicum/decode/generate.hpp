// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <modicum/base/error.hpp>
#include <modicum/decode/log_softmax.hpp>
#include <modicum/decode/processors.hpp>
#include <modicum/decode/sampling.hpp>
#include <modicum/decode/step_model.hpp>
#include <modicum/decode/text_stream.hpp>
#include <modicum/text/tokenizer.hpp>

namespace modicum {

/// Why a text ended.
enum class FinishReason {
  stop_token,   ///< one of the stop ids was chosen
  stop_string,  ///< a stop string appeared in the text
  length,       ///< max_new_tokens was reached
  cancelled,    ///< the callback returned false
  complete,     ///< it is all that its constraint holds (beam search)
};

/// The name of the enumerator, as it reads in a report or in Python.
constexpr std::string_view name(FinishReason reason) noexcept {
  switch (reason) {
    case FinishReason::stop_token:
      return "stop_token";
    case FinishReason::stop_string:
      return "stop_string";
    case FinishReason::length:
      return "length";
    case FinishReason::complete:
      return "complete";
    case FinishReason::cancelled:
      break;
  }
  return "cancelled";
}

struct GenerateOptions {
  std::size_t max_new_tokens = 128;  ///< at least 1
  std::size_t min_new_tokens = 0;    ///< until then no stop token can be chosen
  std::vector<TokenId> stop_ids;     ///< end-of-sequence tokens
  std::vector<std::string> stop;     ///< stop strings; they need a tokenizer
  SamplingOptions sampling;
};

/// What the callback of `generate` is told about each new token.
struct GeneratedToken {
  TokenId id;
  std::string_view text;  ///< what became certain, whole characters, possibly empty; valid during the call
  float log_probability;  ///< as in `GenerateResult`
};

/// Called once a token, in order; the texts joined are the result's. Returning false ends the generation.
using TokenCallback = std::function<bool(const GeneratedToken&)>;

template <class State>
struct GenerateResult {
  /// The new tokens, with the stop token that ended them if one did, as transformers' `generate` returns
  /// them.
  std::vector<TokenId> ids;
  /// Their text without the stop token, special tokens, and a stop string with what follows it. Empty without
  /// a tokenizer.
  std::string text;
  /// Of each of `ids`, natural logarithm: the model's own distribution, before penalties, temperature and
  /// filters.
  std::vector<float> log_probabilities;
  FinishReason finish_reason;
  /// Has read the prompt and all of `ids` but the last, which need not be read to be known. To go on, step
  /// from here with the last id.
  State state;
};

namespace detail {

inline void check_stop_ids(std::string_view op, std::span<const TokenId> stop_ids, std::size_t vocabulary) {
  for (const TokenId id : stop_ids) {
    if (id < 0 || static_cast<std::size_t>(id) >= vocabulary) {
      fail({.op = op,
            .what = "stop_ids",
            .expected = "0 to " + std::to_string(vocabulary - 1),
            .got = std::to_string(id)});
    }
  }
}

inline void check_lengths(std::string_view op, std::size_t min_new_tokens, std::size_t max_new_tokens) {
  if (max_new_tokens == 0) {
    fail({.op = op, .what = "max_new_tokens", .expected = "at least 1", .got = "0"});
  }
  if (min_new_tokens > max_new_tokens) {
    fail({.op = op,
          .what = "min_new_tokens",
          .expected = "at most max_new_tokens (" + std::to_string(max_new_tokens) + ")",
          .got = std::to_string(min_new_tokens)});
  }
}

inline void check_start_logits(std::string_view op, std::size_t got, std::size_t vocabulary) {
  if (got != vocabulary || vocabulary == 0) {
    fail({.op = op,
          .what = "logits after the prompt",
          .expected = std::to_string(vocabulary) + " numbers, at least 1",
          .got = std::to_string(got)});
  }
}

/// One text that is being generated, between its tokens.
template <class State>
class Generation {
 public:
  Generation(State start, std::span<const float> start_logits, std::span<const TokenId> prompt,
             const GenerateOptions& options, const Tokenizer* tokenizer)
      : prompt_(prompt),
        options_(options),
        logits_(start_logits.begin(), start_logits.end()),
        penalty_(options.sampling.repetition_penalty, logits_.size()),
        sampler_(options.sampling),
        text_(tokenizer, options.stop),
        result_{.state = std::move(start)} {}

  /// Chooses a token. True while there is to be another, for which the model must take `next_step`.
  bool choose(const TokenCallback& callback) {
    choose_token();
    std::optional<FinishReason> reason;
    const std::string piece = next_text(reason);
    result_.text += piece;
    if (callback && !callback({result_.ids.back(), piece, result_.log_probabilities.back()}) && !reason) {
      result_.text += text_.finish();
      reason = FinishReason::cancelled;
    }
    if (reason) result_.finish_reason = *reason;
    return !reason;
  }

  /// The step that hands the state over, so that what it held alone can go.
  Step<State> next_step() { return {std::move(result_.state), result_.ids.back()}; }
  /// The model's answer to that step.
  void take(State state, std::span<const float> logits) {
    result_.state = std::move(state);
    logits_.assign(logits.begin(), logits.end());
  }
  GenerateResult<State> finish() { return std::move(result_); }

 private:
  void choose_token() {
    const LogNormaliser log_probability = log_normaliser(logits_);
    scores_ = logits_;
    penalty_.apply(scores_, prompt_, result_.ids);
    if (result_.ids.size() < options_.min_new_tokens) {
      suppress(scores_, options_.stop_ids);
    }
    const TokenId token = sampler_.pick(scores_);
    result_.ids.push_back(token);
    result_.log_probabilities.push_back(log_probability(logits_[static_cast<std::size_t>(token)]));
  }

  /// The text that the last token made certain, and why it is the last, if it is.
  std::string next_text(std::optional<FinishReason>& reason) {
    const TokenId token = result_.ids.back();
    std::string piece;
    if (std::ranges::find(options_.stop_ids, token) != options_.stop_ids.end()) {
      reason = FinishReason::stop_token;
    } else {
      piece = text_.push(token);
      if (result_.ids.size() == options_.max_new_tokens) {
        reason = FinishReason::length;
      }
    }
    if (reason) {
      piece += text_.finish();
    }
    if (text_.stopped()) {
      reason = FinishReason::stop_string;
    }
    return piece;
  }

  std::span<const TokenId> prompt_;
  const GenerateOptions& options_;
  std::vector<float> logits_;  ///< [vocabulary] of the next token
  std::vector<float> scores_;  ///< the same after the processors
  RepetitionPenalty penalty_;
  Sampler sampler_;
  TextStream text_;
  GenerateResult<State> result_;
};

/// Steps all that go on, together, until none does.
template <StepModel M>
void run_generations(M& model, std::vector<Generation<typename M::State>>& generations,
                     const TokenCallback& callback) {
  using State = typename M::State;
  std::vector<std::size_t> running(generations.size());
  std::iota(running.begin(), running.end(), std::size_t{0});
  std::vector<float> logits;
  std::vector<Step<State>> steps;
  for (;;) {
    std::erase_if(running, [&](std::size_t i) { return !generations[i].choose(callback); });
    if (running.empty()) return;
    steps.clear();
    for (const std::size_t i : running) steps.push_back(generations[i].next_step());
    const std::size_t vocabulary = model.vocabulary_size();
    logits.resize(steps.size() * vocabulary);
    std::vector<State> states = model.step(std::span<const Step<State>>(steps), std::span<float>(logits));
    for (std::size_t n = 0; n < running.size(); ++n) {
      generations[running[n]].take(std::move(states[n]),
                                   std::span<const float>(logits).subspan(n * vocabulary, vocabulary));
    }
  }
}

}  // namespace detail

/// A text to continue: `state` has read `prompt`, and `logits` (f32 [vocabulary]) are those after it.
/// `prompt` itself serves the repetition penalty only.
template <class State>
struct GenerateStart {
  State state;
  std::span<const float> logits;
  std::span<const TokenId> prompt;
};

/// Continues several texts in lockstep: each step of the model reads one token of all that go on, so its
/// weights, and the keys and values that they share, are read once for all. Each result is what `generate`
/// gives for that text alone. Throws as `generate`.
template <StepModel M>
std::vector<GenerateResult<typename M::State>> generate_many(
    M& model, std::vector<GenerateStart<typename M::State>> starts, const GenerateOptions& options,
    const Tokenizer* tokenizer = nullptr, const TokenCallback& callback = {}) {
  const std::size_t vocabulary = model.vocabulary_size();
  detail::check_lengths("generate", options.min_new_tokens, options.max_new_tokens);
  detail::check_stop_ids("generate", options.stop_ids, vocabulary);
  validate(options.sampling, "generate");
  std::vector<detail::Generation<typename M::State>> generations;
  generations.reserve(starts.size());
  for (auto& start : starts) {
    detail::check_start_logits("generate", start.logits.size(), vocabulary);
    generations.emplace_back(std::move(start.state), start.logits, start.prompt, options, tokenizer);
  }
  detail::run_generations(model, generations, callback);
  std::vector<GenerateResult<typename M::State>> results;
  results.reserve(generations.size());
  for (auto& generation : generations) results.push_back(generation.finish());
  return results;
}

/// Continues a text by greedy choice or sampling, token for token as transformers' `generate(num_beams=1)`
/// does in greedy mode on equal logits.
///
/// `start` has read `prompt`, and `start_logits` (f32 [vocabulary]) are the logits after it; `prompt` itself
/// serves the repetition penalty only. `tokenizer` may be null when only ids are wanted. Throws
/// `InvalidArgument` for options that make no sense and for logits that are not numbers; what the model and
/// the callback throw passes through.
template <StepModel M>
GenerateResult<typename M::State> generate(M& model, typename M::State start,
                                           std::span<const float> start_logits,
                                           std::span<const TokenId> prompt, const GenerateOptions& options,
                                           const Tokenizer* tokenizer = nullptr,
                                           const TokenCallback& callback = {}) {
  std::vector<GenerateStart<typename M::State>> one;
  one.push_back({std::move(start), start_logits, prompt});
  return std::move(generate_many(model, std::move(one), options, tokenizer, callback).front());
}

}  // namespace modicum
