// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

#include <modicum/decode/log_softmax.hpp>
#include <modicum/text/tokenizer.hpp>

namespace modicum {

/// One token more on one beam.
struct Continuation {
  float score = 0.0f;    ///< sum of log-probabilities, f32 as transformers accumulates it
  std::size_t beam = 0;  ///< the beam that it continues
  TokenId token = 0;
};

/// What a beam that is no beam starts with, so that real ones win: transformers' constant.
inline constexpr float kImpossibleScore = -1.0e9f;

/// The score by which finished hypotheses compare: sum of log-probabilities / length^penalty, `length`
/// counting the new tokens with the stop token. f32 arithmetic on an f64 power, as in transformers.
inline float length_normalised(float score, std::size_t length, double penalty) {
  return score / static_cast<float>(std::pow(static_cast<double>(length), penalty));
}

/// The best `capacity` continuations over the rows that are added. Better is a higher score, then a lower
/// beam, then a lower token. It looks at each log-probability once, in blocks whose largest decides whether
/// they are entered, and holds no more than `capacity` continuations.
class BestContinuations {
 public:
  explicit BestContinuations(std::size_t capacity) : capacity_(capacity) { heap_.reserve(capacity + 1); }

  /// `log_probabilities`: f32 [vocabulary] of the beam's next token. Add beams in ascending order: that is
  /// what settles ties.
  void add(std::size_t beam, float beam_score, std::span<const float> log_probabilities) {
    constexpr std::size_t kBlock = 64;
    for (std::size_t begin = 0; begin < log_probabilities.size(); begin += kBlock) {
      const auto block = log_probabilities.subspan(begin, std::min(kBlock, log_probabilities.size() - begin));
      if (is_full() && !(largest(block) + beam_score > heap_.front().score)) {
        continue;  // rounding is monotone: no sum in the block exceeds this one
      }
      for (std::size_t i = 0; i < block.size(); ++i) {
        offer({block[i] + beam_score, beam, static_cast<TokenId>(begin + i)});
      }
    }
  }

  /// Best first. Leaves this empty.
  std::vector<Continuation> take() {
    std::sort(heap_.begin(), heap_.end(), better);
    return std::exchange(heap_, {});
  }

 private:
  static bool better(const Continuation& a, const Continuation& b) {
    return std::tie(b.score, a.beam, a.token) < std::tie(a.score, b.beam, b.token);
  }

  bool is_full() const { return heap_.size() == capacity_; }

  /// The worst is at the front of the heap; a newcomer comes later in order, so an equal one does not
  /// displace it.
  void offer(const Continuation& continuation) {
    if (is_full()) {
      if (!(continuation.score > heap_.front().score)) {
        return;
      }
      std::pop_heap(heap_.begin(), heap_.end(), better);
      heap_.pop_back();
    }
    heap_.push_back(continuation);
    std::push_heap(heap_.begin(), heap_.end(), better);
  }

  std::size_t capacity_;
  std::vector<Continuation> heap_;
};

}  // namespace modicum
