// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstddef>
#include <limits>
#include <span>
#include <vector>

#include <modicum/search/score_processors.hpp>

namespace modicum {
namespace {

constexpr float kImpossible = -std::numeric_limits<float>::infinity();

/// Whether `sequence` ends with all of `ids` but the last.
bool ends_before_last(std::span<const TokenId> sequence, std::span<const TokenId> ids) {
  const std::size_t before = ids.size() - 1;
  return before <= sequence.size() && std::ranges::equal(sequence.last(before), ids.first(before));
}

/// Makes every other token impossible.
void force(std::span<float> scores, std::span<const TokenId> tokens) {
  std::ranges::fill(scores, kImpossible);
  for (const TokenId token : tokens) scores[static_cast<std::size_t>(token)] = 0.0f;
}

}  // namespace

ScoreProcessors::ScoreProcessors(const BeamOptions& options, std::size_t vocabulary)
    : options_(options), repetition_(options.repetition_penalty, vocabulary) {}

bool ScoreProcessors::act_on(std::size_t new_tokens) const {
  const BeamOptions& o = options_;
  return o.repetition_penalty != 1.0 || o.no_repeat_ngram_size > 0 || !o.bad_words.empty() ||
         !o.sequence_bias.empty() || !o.suppress.empty() ||
         (new_tokens < o.min_new_tokens && !o.stop_ids.empty()) ||
         (new_tokens == 0 && o.forced_bos.has_value()) || (new_tokens <= 1 && !o.begin_suppress.empty()) ||
         (new_tokens + 1 == o.max_new_tokens && !o.forced_eos.empty());
}

void ScoreProcessors::apply(std::span<float> scores, std::span<const TokenId> sequence,
                            std::size_t new_tokens, std::span<const float> penalties) {
  const BeamOptions& o = options_;
  add_bias(scores, sequence);
  for (std::size_t i = 0; i < penalties.size(); ++i) scores[i] -= penalties[i];
  repetition_.apply(scores, sequence, {});
  ban_ngrams(scores, sequence);
  ban_words(scores, sequence);
  if (new_tokens < o.min_new_tokens) suppress(scores, o.stop_ids);
  if (o.forced_bos && sequence.size() == 1) force(scores, {&*o.forced_bos, 1});
  if (!o.forced_eos.empty() && new_tokens + 1 == o.max_new_tokens) force(scores, o.forced_eos);
  suppress(scores, o.suppress);
  // A forced first token is not the one that begins the text.
  const bool is_begun_by_force = o.forced_bos && sequence.size() == new_tokens + 1;
  if (new_tokens == (is_begun_by_force ? 1 : 0)) suppress(scores, o.begin_suppress);
}

void ScoreProcessors::add_bias(std::span<float> scores, std::span<const TokenId> sequence) const {
  for (const SequenceBias& entry : options_.sequence_bias) {
    if (ends_before_last(sequence, entry.ids)) {
      scores[static_cast<std::size_t>(entry.ids.back())] += entry.bias;
    }
  }
}

void ScoreProcessors::ban_ngrams(std::span<float> scores, std::span<const TokenId> sequence) const {
  const std::size_t n = options_.no_repeat_ngram_size;
  if (n == 0 || sequence.size() < n) return;
  const auto prefix = sequence.last(n - 1);
  for (std::size_t begin = 0; begin + n <= sequence.size(); ++begin) {
    const auto last = static_cast<std::size_t>(sequence[begin + n - 1]);
    if (last < scores.size() && std::ranges::equal(sequence.subspan(begin, n - 1), prefix)) {
      scores[last] = kImpossible;
    }
  }
}

void ScoreProcessors::ban_words(std::span<float> scores, std::span<const TokenId> sequence) const {
  for (const std::vector<TokenId>& word : options_.bad_words) {
    const bool is_stop = word.size() == 1 && std::ranges::count(options_.stop_ids, word.front()) > 0;
    if (!is_stop && ends_before_last(sequence, word)) {
      scores[static_cast<std::size_t>(word.back())] = kImpossible;
    }
  }
}

}  // namespace modicum
