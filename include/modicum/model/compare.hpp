// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstddef>
#include <optional>
#include <span>

#include <modicum/base/progress.hpp>
#include <modicum/model/transformer.hpp>

namespace modicum {

/// How well a model predicts the tokens of sequences from those before them in their sequence.
struct Perplexity {
  std::size_t sequences = 0;
  std::size_t tokens = 0;                     ///< that were predicted: all of a sequence but its first
  double loss = 0;                            ///< mean negative log-likelihood of a token, in nats
  std::optional<double> loss_standard_error;  ///< of the mean over sequences; empty with one of them

  double value() const { return std::exp(loss); }
};

/// What a student lost of its teacher, over the same tokens of both.
struct Comparison {
  Perplexity teacher;
  Perplexity student;
  /// Of student.loss − teacher.loss over sequences: far below what either alone has, as hard text is hard for
  /// both.
  std::optional<double> loss_change_standard_error;
  /// Mean over tokens of KL(teacher ‖ student) = Σ p (log p − log q) of the next token's distribution, nats.
  double kl = 0;
  std::optional<double> kl_standard_error;  ///< over sequences
  double kl_95 = 0;                         ///< 95 % of the tokens have this or less
  double kl_max = 0;
  double top1_agreement = 0;  ///< share of tokens where both find the same next token likeliest
};

struct CompareOptions {
  std::size_t logits_bytes = std::size_t{64} << 20;  ///< held at once, of both models together
};

/// Reads `sequences`, [sequences, length] row-major, once with each model. Logits are formed in blocks of
/// rows, so memory does not grow with the vocabulary; every sum is in f64, in one order whatever the number
/// of threads. A model beside itself has a KL of exactly 0.
///
/// Each position's KL is summed as Σ (q − p + p (log p − log q)), whose terms are never negative and which an
/// error of the normalisers changes by its square alone: the usual sum has a floor of about 1e-7.
///
/// Throws `InvalidArgument` for models of different vocabularies, sequences of fewer than two tokens or not
/// of `length`, a token outside the vocabulary, and logits that are not finite; `ContextOverflow` where
/// length − 1 is more than a model's context; `OutOfMemory` and `Cancelled`.
Comparison compare(const Transformer& teacher, const Transformer& student, std::span<const TokenId> sequences,
                   std::size_t length, const CompareOptions& options = {}, const Progress& progress = {});

/// The perplexity of one model, as `compare` measures it.
Perplexity perplexity(const Transformer& model, std::span<const TokenId> sequences, std::size_t length,
                      const CompareOptions& options = {}, const Progress& progress = {});

}  // namespace modicum
