// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <modicum/base/error.hpp>
#include <modicum/decode/log_softmax.hpp>
#include <modicum/decode/random.hpp>
#include <modicum/text/tokenizer.hpp>

namespace modicum {

/// One token more on one beam.
struct Continuation {
  float score = 0.0f;    ///< sum of log-probabilities, f32 as transformers accumulates it
  std::size_t beam = 0;  ///< the beam that it continues
  TokenId token = 0;
  float log_probability = 0.0f;  ///< of the token alone
};

/// What a beam that is no beam starts with, so that real ones win: transformers' constant.
inline constexpr float kImpossibleScore = -1.0e9f;

/// The score by which finished hypotheses compare: sum of log-probabilities / length^penalty, `length`
/// counting the new tokens with the stop token. f32 arithmetic on an f64 power, as in transformers.
inline float length_normalised(float score, std::size_t length, double penalty) {
  return score / static_cast<float>(std::pow(static_cast<double>(length), penalty));
}

/// The log-probabilities of one row, found as they are asked for: nothing as large as the vocabulary is
/// written. The largest of each block is at hand, so that a search need not look at the others.
class RowScores {
 public:
  static constexpr std::size_t kBlock = 256;

  /// `logits`: f32 [vocabulary], -inf for impossible tokens; used as long as this is. Throws
  /// `InvalidArgument` for NaN, +inf, and where every token is impossible.
  void read_logits(std::span<const float> logits) {
    scan(logits);
    normaliser_ = {max_, static_cast<float>(std::log(checked_sum("logits")))};
  }

  /// The same for scores that are used as they are; every token may be impossible.
  void read_log_probabilities(std::span<const float> scores) {
    scan(scores);
    const bool is_impossible = std::ranges::all_of(
        scores, [](float score) { return score == -std::numeric_limits<float>::infinity(); });
    if (!is_impossible) checked_sum("log-probabilities");
    normaliser_ = {0.0f, 0.0f};
  }

  std::size_t size() const noexcept { return row_.size(); }
  float operator[](std::size_t token) const noexcept { return normaliser_(row_[token]); }
  /// No token of [block · kBlock, (block + 1) · kBlock) has more: rounding is monotone.
  float bound(std::size_t block) const noexcept { return normaliser_(block_max_[block]); }

 private:
  void scan(std::span<const float> row) {
    row_ = row;
    block_max_.resize((row.size() + kBlock - 1) / kBlock);
    for (std::size_t i = 0; i < block_max_.size(); ++i) {
      block_max_[i] = largest(row.subspan(i * kBlock, std::min(kBlock, row.size() - i * kBlock)));
    }
    max_ = largest(block_max_);
  }

  double checked_sum(const char* what) const {
    const double sum = exp_sum(row_, max_);
    if (!std::isfinite(max_) || !std::isfinite(sum)) {
      fail({.op = "beam",
            .what = std::string(what) + " of " + std::to_string(row_.size()) + " tokens",
            .expected = "finite numbers or -inf, at least one of them finite",
            .got = "a largest of " + std::to_string(max_) + (std::isfinite(max_) ? " and NaN" : ""),
            .todo = "check the model's weights and its dtype for overflow"});
    }
    return sum;
  }

  std::span<const float> row_;
  LogNormaliser normaliser_;
  float max_ = 0.0f;
  std::vector<float> block_max_;
};

/// The best `capacity` continuations over the rows that are added: a higher score is better, then a lower
/// beam, then a lower token. Impossible tokens (-inf) are never among them. `admit(token)` is asked only
/// about those that would be kept.
///
/// With a `Random`, they are drawn without replacement in proportion to exp(score), and ordered as drawn:
/// largest score plus Gumbel noise first (Kool et al. 2019, arXiv:1903.06059).
class BestContinuations {
 public:
  explicit BestContinuations(std::size_t capacity, Random* random = nullptr)
      : capacity_(capacity), random_(random) {
    heap_.reserve(capacity + 1);
  }

  /// All tokens of the row of `beam`, whose score so far is `beam_score`.
  template <class Admit>
  void add_all(std::size_t beam, float beam_score, const RowScores& row, Admit admit) {
    for (std::size_t begin = 0; begin < row.size(); begin += RowScores::kBlock) {
      if (is_below(row.bound(begin / RowScores::kBlock) + beam_score)) continue;
      const std::size_t end = std::min(begin + RowScores::kBlock, row.size());
      for (std::size_t i = begin; i < end; ++i) add(beam, beam_score, row, static_cast<TokenId>(i), admit);
    }
  }
  void add_all(std::size_t beam, float beam_score, const RowScores& row) {
    add_all(beam, beam_score, row, [](TokenId) { return true; });
  }

  /// Tokens whose bit is set in `mask` (see `AllowedTokens`).
  template <class Admit>
  void add_masked(std::size_t beam, float beam_score, const RowScores& row,
                  std::span<const std::uint32_t> mask, Admit admit) {
    const std::size_t words = std::min(mask.size(), (row.size() + 31) / 32);
    for (std::size_t w = 0; w < words; ++w) {
      if (mask[w] == 0 || is_below(row.bound(w * 32 / RowScores::kBlock) + beam_score)) continue;
      for (std::uint32_t bits = mask[w]; bits != 0; bits &= bits - 1) {
        const std::size_t i = w * 32 + static_cast<std::size_t>(std::countr_zero(bits));
        if (i < row.size()) add(beam, beam_score, row, static_cast<TokenId>(i), admit);
      }
    }
  }

  /// One token; each may be added once.
  template <class Admit>
  void add(std::size_t beam, float beam_score, const RowScores& row, TokenId token, Admit admit) {
    const float log_probability = row[static_cast<std::size_t>(token)];
    const float score = log_probability + beam_score;
    if (!(score > -std::numeric_limits<float>::infinity())) return;
    const Keyed entry{{score, beam, token, log_probability},
                      random_ == nullptr ? static_cast<double>(score) : drawn(score)};
    if (is_full() && !better(entry, heap_.front())) return;
    if (!admit(token)) return;
    if (is_full()) {
      std::pop_heap(heap_.begin(), heap_.end(), better);
      heap_.pop_back();
    }
    heap_.push_back(entry);
    std::push_heap(heap_.begin(), heap_.end(), better);
  }

  /// Best first. Leaves this empty.
  std::vector<Continuation> take() {
    std::sort(heap_.begin(), heap_.end(), better);
    std::vector<Continuation> best;
    best.reserve(heap_.size());
    for (const Keyed& entry : heap_) best.push_back(entry.continuation);
    heap_.clear();
    return best;
  }

 private:
  struct Keyed {
    Continuation continuation;
    double key;
  };

  static bool better(const Keyed& a, const Keyed& b) {
    return std::tie(b.key, a.continuation.beam, a.continuation.token) <
           std::tie(a.key, b.continuation.beam, b.continuation.token);
  }

  bool is_full() const { return heap_.size() == capacity_; }

  /// Whether nothing of at most `score` can be kept. Equal scores of a later beam or token lose.
  bool is_below(float score) const {
    return random_ == nullptr && is_full() && static_cast<double>(score) < heap_.front().key;
  }

  double drawn(float score) {
    const double uniform = random_->uniform() + 0x1.0p-54;  // never 0
    return static_cast<double>(score) - std::log(-std::log(uniform));
  }

  std::size_t capacity_;
  Random* random_;
  std::vector<Keyed> heap_;
};

}  // namespace modicum
