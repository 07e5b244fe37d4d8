// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <modicum/base/progress.hpp>
#include <modicum/decode/generate.hpp>
#include <modicum/decode/sampling.hpp>
#include <modicum/search/constraint.hpp>
#include <modicum/search/search_tree.hpp>
#include <modicum/text/tokenizer.hpp>

namespace modicum {

/// When a search ends whose finished hypotheses fill all beams: transformers' early_stopping.
enum class EarlyStopping : std::uint8_t {
  no,     ///< False: when the best running beam, at its present length, cannot beat the worst finished one
  yes,    ///< True: at once
  never,  ///< "never": when it could not even at the length that favours it most
};

enum class BeamMode : std::uint8_t {
  /// Token for token transformers' `generate(num_beams=…)`, its quirks with it: beams that are none, with
  /// scores of about -1e9, fill up where continuations are short, and a hypothesis that ends at a rank beyond
  /// the number of beams is lost.
  transformers,
  /// Without those: every beam is real, every hypothesis that ends among the candidates counts, and a beam
  /// that can no longer become one of the `num_return` best is dropped, which ends the search early.
  native,
};

/// What a step model's rows are.
enum class ModelScores : std::uint8_t {
  logits,             ///< they are normalised by log_softmax
  log_probabilities,  ///< they are used as they are
};

/// What to do where the model has no memory for a step (`OutOfMemory`, as of a tree with a bound).
enum class WhenFull : std::uint8_t {
  fail,    ///< the error passes through
  narrow,  ///< go on with fewer beams, the worst of them dropped; fail where one does not fit either
};

/// Added to the score of the last of `ids` where the others stand before it (transformers' sequence_bias).
struct SequenceBias {
  std::vector<TokenId> ids;
  float bias;
};

/// Processors act on log-probabilities and in transformers' order: sequence_bias, diversity,
/// repetition_penalty, no_repeat_ngram_size, bad_words, min_new_tokens, the constraint, forced tokens,
/// suppressed tokens, then temperature and filters.
struct BeamOptions {
  std::size_t beams = 4;
  std::size_t max_new_tokens = 128;  ///< at least 1
  std::size_t min_new_tokens = 0;    ///< until then no stop token can be chosen
  double length_penalty = 1.0;  ///< a hypothesis's score is its sum of log-probabilities / length^penalty
  EarlyStopping early_stopping = EarlyStopping::no;
  std::size_t num_return = 1;     ///< hypotheses to return, 1 to `beams`
  std::vector<TokenId> stop_ids;  ///< end-of-sequence tokens
  std::vector<std::string> stop;  ///< strings that end a hypothesis, which keeps them; they need a tokenizer
  double repetition_penalty = 1.0;              ///< over the prompt and the beam
  std::size_t no_repeat_ngram_size = 0;         ///< no n-gram of prompt and beam occurs twice; 0: any may
  std::vector<std::vector<TokenId>> bad_words;  ///< token sequences that never occur
  std::vector<SequenceBias> sequence_bias;
  std::optional<TokenId> forced_bos;    ///< the first new token where the prompt is one token long
  std::vector<TokenId> forced_eos;      ///< of these is the last token that `max_new_tokens` allows
  std::vector<TokenId> suppress;        ///< never chosen
  std::vector<TokenId> begin_suppress;  ///< never chosen as the first new token that is not forced
  /// Diverse beam search (Vijayakumar et al. 2018, arXiv:1610.02424): groups of beams / groups beams, one
  /// after the other in each step; a token costs `diversity_penalty` for each beam of an earlier group that
  /// chose it in this step (Hamming diversity). As in transformers 4, but that a group's search ends as that
  /// of transformers 5 does, and that a group that is done counts no more.
  std::size_t groups = 1;
  double diversity_penalty = 0.0;
  /// Beam sampling where its temperature is above 0: candidates are drawn without replacement (by Gumbel
  /// top-k: Kool et al. 2019, arXiv:1903.06059), in the same distribution as transformers' do_sample=True.
  /// Its repetition_penalty is not used.
  SamplingOptions sampling;
  BeamMode mode = BeamMode::transformers;
  ModelScores scores = ModelScores::logits;
  WhenFull when_full = WhenFull::fail;
  bool keep_states = false;  ///< return a state with each hypothesis, so that it can be continued
};

struct Hypothesis {
  std::vector<TokenId> ids;  ///< the new tokens, with the stop token that ended them if one did
  float score;               ///< transformers' sequences_scores
  FinishReason finish_reason;
  std::vector<float> log_probabilities;  ///< of each of `ids`, after processors; their sum is what is scored
  std::uint32_t node;                    ///< its last token's place in `BeamResult::tree`
};

/// What a search took.
struct BeamStats {
  std::size_t steps = 0;        ///< tokens of the longest beam
  std::size_t rows = 0;         ///< tokens that the model read after the prompt
  std::size_t peak_tokens = 0;  ///< the most that live beams held at once after the prompt, shared ones once
  std::size_t width = 0;        ///< beams at the end: fewer than asked for where memory was short
};

/// `hypotheses`: best first. Fewer than `num_return` only where the model had fewer continuations to offer:
/// transformers then fills up with copies whose scores are about -1e9, which are left out here.
template <class State>
struct BeamResult {
  std::vector<Hypothesis> hypotheses;
  SearchTree tree;
  BeamStats stats;
  /// With `keep_states`, one for each hypothesis: it has read the prompt and all of its ids but the last. To
  /// go on, step from here with the last id.
  std::vector<State> states;
};

/// Called with tokens that no later step can change: every live beam, and the best finished hypothesis,
/// begins with all that was told so far. What the best one has beyond that is told at the end.
using StableTokens = std::function<void(std::span<const TokenId>)>;

/// What takes part in a search besides its model; all of it may be absent.
struct BeamHooks {
  const Constraint* constraint = nullptr;
  const Tokenizer* tokenizer = nullptr;  ///< for stop strings, and to check the constraint's by
  Progress progress = {};                ///< ("beam", tokens, max_new_tokens)
  StableTokens on_stable = {};           ///< of the first prompt, where there are several
};

/// Throws `InvalidArgument` naming the field that makes no sense, and `FingerprintMismatch` for a constraint
/// of another tokenizer than the one in `hooks`.
void validate(const BeamOptions& options, const BeamHooks& hooks, std::size_t vocabulary);

}  // namespace modicum
