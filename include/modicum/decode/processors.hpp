// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include <modicum/text/tokenizer.hpp>

namespace modicum {

/// Makes tokens that were seen already less likely: a negative score is multiplied by the penalty, another
/// divided (Keskar et al., "CTRL", 2019; transformers' RepetitionPenaltyLogitsProcessor). Each token counts
/// once, however often it was seen. An id beyond the vocabulary cannot be generated and is passed over, as
/// there.
class RepetitionPenalty {
 public:
  /// `penalty` > 0; 1 changes nothing, more than 1 discourages.
  RepetitionPenalty(double penalty, std::size_t vocabulary)
      : penalty_(static_cast<float>(penalty)), last_use_(penalty == 1.0 ? 0 : vocabulary, 0) {}

  /// `scores`: logits or log-probabilities, f32 [vocabulary], changed in place.
  void apply(std::span<float> scores, std::span<const TokenId> prompt, std::span<const TokenId> generated) {
    if (last_use_.empty()) {
      return;
    }
    ++use_;
    penalise(scores, prompt);
    penalise(scores, generated);
  }

 private:
  void penalise(std::span<float> scores, std::span<const TokenId> seen) {
    for (const TokenId token : seen) {
      const auto i = static_cast<std::size_t>(token);
      if (i < scores.size() && last_use_[i] != use_) {
        last_use_[i] = use_;
        scores[i] = scores[i] < 0.0f ? scores[i] * penalty_ : scores[i] / penalty_;
      }
    }
  }

  float penalty_;
  std::vector<std::uint64_t> last_use_;  ///< [vocabulary] the use in which a token was last penalised
  std::uint64_t use_ = 0;
};

/// Makes `tokens` impossible (transformers' MinNewTokensLengthLogitsProcessor does so with the stop tokens).
inline void suppress(std::span<float> scores, std::span<const TokenId> tokens) {
  for (const TokenId token : tokens) {
    scores[static_cast<std::size_t>(token)] = -std::numeric_limits<float>::infinity();
  }
}

}  // namespace modicum
