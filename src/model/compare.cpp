// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include <modicum/base/error.hpp>
#include <modicum/ops/reductions.hpp>
#include <modicum/model/compare.hpp>

namespace modicum {
namespace {

/// Rows that a model reads in one pass: short sequences go together, as weights are then read once for all.
constexpr std::size_t kPassRows = 512;

/// One model on its way through the sequences.
class Reader {
 public:
  explicit Reader(const Transformer& model) : model_(model), tree_(model.tree()) {}

  void read(std::span<const Extension> sequences, const Progress& progress) {
    std::vector<Extension> extensions(sequences.begin(), sequences.end());
    for (Extension& extension : extensions) extension.parent = tree_.root();
    model_.extend(tree_, extensions, &hidden_, progress);
  }

  void form_logits(std::size_t first, std::size_t rows) {
    logits_.resize(std::max(logits_.size(), rows * vocabulary()));
    model_.logits_of(hidden_.row(first).data(), rows, logits_.data());
  }
  std::span<const float> logits(std::size_t row) const {
    return std::span(logits_).subspan(row * vocabulary(), vocabulary());
  }

  std::size_t vocabulary() const { return model_.config().vocab_size; }
  const Transformer& model() const { return model_; }

 private:
  const Transformer& model_;
  KvTree tree_;
  Matrix hidden_;
  std::vector<float> logits_;
};

/// log Σ exp(logit). The sum is in f32 within 256 elements: see `ops::exp_sum`.
double log_sum_exp(std::span<const float> logits) {
  const float max = ops::largest(logits);
  const double sum = ops::exp_sum(logits, max);
  if (!std::isfinite(max) || !std::isfinite(sum)) {
    fail({.op = "compare",
          .what = "logits of a token",
          .expected = "finite numbers",
          .got = std::isfinite(max) ? "NaN" : "a largest one of " + std::to_string(max),
          .todo = "check the model's weights and its dtype for overflow"});
  }
  return static_cast<double>(max) + std::log(sum);
}

/// Σ (q − p + p (log p − log q)) over the vocabulary.
double divergence(std::span<const float> p_logits, double p_sum, std::span<const float> q_logits,
                  double q_sum) {
  double total = 0;
  for (std::size_t i = 0; i < p_logits.size(); ++i) {
    const double log_p = static_cast<double>(p_logits[i]) - p_sum;
    const double log_q = static_cast<double>(q_logits[i]) - q_sum;
    const double p = std::exp(log_p);
    total += std::exp(log_q) - p + (p > 0 ? p * (log_p - log_q) : 0);
  }
  return std::max(total, 0.0);
}

/// What was measured at each token that was predicted.
struct TokenScores {
  std::vector<double> teacher_loss, student_loss, kl;
  std::vector<std::uint8_t> agrees;
};

class Measurement {
 public:
  Measurement(const Transformer& teacher, const Transformer* student, std::span<const TokenId> sequences,
              std::size_t length, const CompareOptions& options, const Progress& progress)
      : sequences_(sequences), length_(length), progress_(progress) {
    readers_.emplace_back(teacher);
    if (student != nullptr) readers_.emplace_back(*student);
    check();
    const std::size_t row_bytes = readers_.size() * teacher.config().vocab_size * sizeof(float);
    block_rows_ = std::clamp<std::size_t>(options.logits_bytes / row_bytes, 1, kPassRows);
    scores_.teacher_loss.resize(tokens());
    if (student != nullptr) {
      scores_.student_loss.resize(tokens());
      scores_.kl.resize(tokens());
      scores_.agrees.resize(tokens());
    }
  }

  TokenScores run() {
    const std::size_t together = std::max<std::size_t>(1, kPassRows / predicted());
    const std::size_t count = sequences_.size() / length_;
    for (std::size_t first = 0; first < count; first += together) {
      measure(first, std::min(together, count - first));
    }
    report(progress_, "compare", tokens(), tokens());
    return std::move(scores_);
  }

 private:
  std::size_t predicted() const { return length_ - 1; }
  std::size_t tokens() const { return sequences_.size() / length_ * predicted(); }

  void check() const {
    if (length_ < 2 || sequences_.empty() || sequences_.size() % length_ != 0) {
      fail({.op = "compare",
            .what = "sequences",
            .expected = "one or more, all of one length of at least 2 tokens",
            .got = std::to_string(sequences_.size()) + " tokens in sequences of " + std::to_string(length_)});
    }
    const std::size_t vocabulary = readers_.front().vocabulary();
    if (readers_.back().vocabulary() != vocabulary) {
      fail({.op = "compare",
            .what = "vocabularies",
            .expected = "the same for both models",
            .got = std::to_string(vocabulary) + " and " + std::to_string(readers_.back().vocabulary()) +
                   " tokens",
            .todo = "compare a student with the model that it was made from"});
    }
    for (std::size_t i = 0; i < sequences_.size(); ++i) {
      if (sequences_[i] >= 0 && static_cast<std::size_t>(sequences_[i]) < vocabulary) continue;
      fail({.op = "compare",
            .what = "token " + std::to_string(i % length_) + " of sequence " + std::to_string(i / length_),
            .expected = "0 to " + std::to_string(vocabulary - 1),
            .got = std::to_string(sequences_[i])});
    }
  }

  /// `count` sequences from `first` on.
  void measure(std::size_t first, std::size_t count) {
    std::vector<Extension> texts;
    for (std::size_t i = first; i < first + count; ++i) {
      texts.push_back({.parent = {}, .tokens = sequences_.subspan(i * length_, predicted())});
    }
    const std::size_t rows = count * predicted();
    const std::size_t done = first * predicted();
    for (std::size_t i = 0; i < readers_.size(); ++i) {
      readers_[i].read(texts, [&](std::string_view, std::uint64_t read, std::uint64_t) {
        report(progress_, "compare", done + (i * rows + read) / readers_.size(), tokens());
        return true;
      });
    }
    for (std::size_t row = 0; row < rows; row += block_rows_) {
      report(progress_, "compare", done + rows, tokens());
      const std::size_t block = std::min(block_rows_, rows - row);
      for (Reader& reader : readers_) reader.form_logits(row, block);
      readers_.front().model().pool().run(block, [&](std::size_t i) { score(i, done + row + i); });
    }
  }

  /// Row `row` of the block is the prediction of the token that has number `token` among those predicted.
  void score(std::size_t row, std::size_t token) {
    const TokenId next = sequences_[token / predicted() * length_ + token % predicted() + 1];
    const std::span<const float> p = readers_.front().logits(row);
    const double p_sum = log_sum_exp(p);
    scores_.teacher_loss[token] = p_sum - static_cast<double>(p[static_cast<std::size_t>(next)]);
    if (readers_.size() == 1) return;
    const std::span<const float> q = readers_.back().logits(row);
    const double q_sum = log_sum_exp(q);
    scores_.student_loss[token] = q_sum - static_cast<double>(q[static_cast<std::size_t>(next)]);
    scores_.kl[token] = divergence(p, p_sum, q, q_sum);
    scores_.agrees[token] =
        std::ranges::max_element(p) - p.begin() == std::ranges::max_element(q) - q.begin() ? 1 : 0;
  }

  std::span<const TokenId> sequences_;
  std::size_t length_;
  const Progress& progress_;
  std::vector<Reader> readers_;
  std::size_t block_rows_ = 1;
  TokenScores scores_;
};

struct Mean {
  double value = 0;
  std::optional<double> standard_error;
};

/// Of sequences of equal length, so the mean of their means is that of all tokens.
Mean mean_over_sequences(std::span<const double> tokens, std::size_t sequences) {
  const std::size_t length = tokens.size() / sequences;
  std::vector<double> means(sequences);
  for (std::size_t s = 0; s < sequences; ++s) {
    for (const double value : tokens.subspan(s * length, length)) means[s] += value;
    means[s] /= static_cast<double>(length);
  }
  const auto count = static_cast<double>(sequences);
  Mean mean;
  for (const double value : means) mean.value += value / count;
  if (sequences == 1) return mean;
  double squares = 0;
  for (const double value : means) squares += (value - mean.value) * (value - mean.value);
  mean.standard_error = std::sqrt(squares / (count - 1) / count);
  return mean;
}

Perplexity perplexity_of(std::span<const double> losses, std::size_t sequences) {
  const Mean loss = mean_over_sequences(losses, sequences);
  return {.sequences = sequences,
          .tokens = losses.size(),
          .loss = loss.value,
          .loss_standard_error = loss.standard_error};
}

/// The smallest of `values` that a `share` of them do not exceed.
double quantile(std::vector<double> values, double share) {
  const auto rank = static_cast<std::size_t>(std::ceil(share * static_cast<double>(values.size())));
  const auto at = values.begin() + static_cast<std::ptrdiff_t>(std::max<std::size_t>(rank, 1) - 1);
  std::ranges::nth_element(values, at);
  return *at;
}

}  // namespace

Comparison compare(const Transformer& teacher, const Transformer& student, std::span<const TokenId> sequences,
                   std::size_t length, const CompareOptions& options, const Progress& progress) {
  const TokenScores scores = Measurement(teacher, &student, sequences, length, options, progress).run();
  const std::size_t count = sequences.size() / length;
  std::vector<double> change(scores.kl.size());
  std::ranges::transform(scores.student_loss, scores.teacher_loss, change.begin(), std::minus{});
  const Mean kl = mean_over_sequences(scores.kl, count);
  return {.teacher = perplexity_of(scores.teacher_loss, count),
          .student = perplexity_of(scores.student_loss, count),
          .loss_change_standard_error = mean_over_sequences(change, count).standard_error,
          .kl = kl.value,
          .kl_standard_error = kl.standard_error,
          .kl_95 = quantile(scores.kl, 0.95),
          .kl_max = *std::ranges::max_element(scores.kl),
          .top1_agreement = static_cast<double>(std::ranges::count(scores.agrees, 1)) /
                            static_cast<double>(scores.agrees.size())};
}

Perplexity perplexity(const Transformer& model, std::span<const TokenId> sequences, std::size_t length,
                      const CompareOptions& options, const Progress& progress) {
  const TokenScores scores = Measurement(model, nullptr, sequences, length, options, progress).run();
  return perplexity_of(scores.teacher_loss, sequences.size() / length);
}

}  // namespace modicum
