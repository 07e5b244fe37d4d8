// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include <modicum/decode/processors.hpp>
#include <modicum/search/beam_options.hpp>

namespace modicum {

/// The processors of `BeamOptions`, in transformers' order (GenerationMixin._get_logits_processor).
class ScoreProcessors {
 public:
  /// `options` must outlive this.
  ScoreProcessors(const BeamOptions& options, std::size_t vocabulary);

  /// Whether `apply` may change anything after `new_tokens` new ones.
  bool act_on(std::size_t new_tokens) const;

  /// `scores`: log-probabilities f32 [vocabulary] of the token after `sequence`, of which the last
  /// `new_tokens` are new. `penalties`: f32 [vocabulary], subtracted where there are any.
  void apply(std::span<float> scores, std::span<const TokenId> sequence, std::size_t new_tokens,
             std::span<const float> penalties = {});

 private:
  void add_bias(std::span<float> scores, std::span<const TokenId> sequence) const;
  void ban_ngrams(std::span<float> scores, std::span<const TokenId> sequence) const;
  void ban_words(std::span<float> scores, std::span<const TokenId> sequence) const;

  const BeamOptions& options_;
  RepetitionPenalty repetition_;
};

}  // namespace modicum
