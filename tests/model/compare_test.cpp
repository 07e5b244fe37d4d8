// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>

#include <modicum/base/error.hpp>
#include <modicum/model/compare.hpp>

#include "base/temporary_directory.hpp"
#include "model/random_model.hpp"
#include "support/catch.hpp"

using namespace modicum;
using Catch::Matchers::Contains;

namespace {

constexpr std::size_t kLength = 23;
constexpr std::size_t kVocabulary = 97;

/// A tiny model whose weights are those of `seed`.
Transformer random_transformer(std::uint32_t seed, std::size_t threads = 1, const std::string& more = "") {
  const TemporaryDirectory directory;
  const std::string json = tiny_config("llama", 2, more);
  write_checkpoint(directory / "model", json, tensors_of(parse_model_config(json), "F32"), seed);
  const Checkpoint checkpoint = Checkpoint::open(directory / "model");
  return Transformer(checkpoint.config(), ModelWeights::load(checkpoint), threads);
}

std::vector<TokenId> random_sequences(std::size_t count, std::size_t length = kLength) {
  std::mt19937 random(7);
  std::vector<TokenId> ids(count * length);
  for (TokenId& id : ids) id = static_cast<TokenId>(random() % kVocabulary);
  return ids;
}

/// log p, f64 [length, vocabulary], read in one pass and normalised naively.
std::vector<std::vector<double>> log_probabilities(const Transformer& model, std::span<const TokenId> ids) {
  const KvTree tree = model.tree();
  const Extension extension{tree.root(), ids};
  Matrix hidden;
  model.extend(tree, {&extension, 1}, &hidden);
  std::vector<float> logits(kVocabulary);
  std::vector<std::vector<double>> rows;
  for (std::size_t r = 0; r < ids.size(); ++r) {
    model.logits_of(hidden.row(r).data(), 1, logits.data());
    double sum = 0;
    for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
    auto& row = rows.emplace_back();
    for (const float logit : logits) row.push_back(static_cast<double>(logit) - std::log(sum));
  }
  return rows;
}

bool same(const Comparison& a, const Comparison& b) {
  return a.teacher.loss == b.teacher.loss && a.student.loss == b.student.loss && a.kl == b.kl &&
         a.kl_standard_error == b.kl_standard_error &&
         a.loss_change_standard_error == b.loss_change_standard_error && a.kl_95 == b.kl_95 &&
         a.kl_max == b.kl_max && a.top1_agreement == b.top1_agreement;
}

}  // namespace

TEST_CASE("a model beside itself has a divergence of exactly 0 and agrees everywhere") {
  const Transformer model = random_transformer(1);
  const Transformer copy = random_transformer(1, 2);
  const std::vector<TokenId> ids = random_sequences(3);
  for (const Transformer* other : {&model, &copy}) {
    const Comparison result = compare(model, *other, ids, kLength);
    CHECK(result.kl == 0);
    CHECK(result.kl_standard_error == 0.0);
    CHECK(result.kl_max == 0);
    CHECK(result.top1_agreement == 1);
    CHECK(result.teacher.loss == result.student.loss);
    CHECK(result.loss_change_standard_error == 0.0);
  }
}

TEST_CASE("the measures are those of naive sums in f64") {
  const Transformer teacher = random_transformer(1);
  const Transformer student = random_transformer(2);
  constexpr std::size_t kCount = 3;
  const std::vector<TokenId> ids = random_sequences(kCount);
  std::vector<double> kls, sequence_kls, changes;
  double teacher_loss = 0, student_loss = 0, agreements = 0;
  for (std::size_t s = 0; s < kCount; ++s) {
    const auto sequence = std::span(ids).subspan(s * kLength, kLength);
    const auto p = log_probabilities(teacher, sequence);
    const auto q = log_probabilities(student, sequence);
    double sequence_kl = 0, change = 0;
    for (std::size_t r = 0; r + 1 < kLength; ++r) {
      double kl = 0;
      for (std::size_t i = 0; i < kVocabulary; ++i) kl += std::exp(p[r][i]) * (p[r][i] - q[r][i]);
      const auto next = static_cast<std::size_t>(sequence[r + 1]);
      kls.push_back(kl);
      sequence_kl += kl / (kLength - 1);
      change += (p[r][next] - q[r][next]) / (kLength - 1);
      teacher_loss -= p[r][next];
      student_loss -= q[r][next];
      agreements +=
          std::ranges::max_element(p[r]) - p[r].begin() == std::ranges::max_element(q[r]) - q[r].begin();
    }
    sequence_kls.push_back(sequence_kl);
    changes.push_back(change);
  }
  const auto standard_error = [](const std::vector<double>& x) {
    double mean = 0, squares = 0;
    for (const double value : x) mean += value / kCount;
    for (const double value : x) squares += std::pow(value - mean, 2);
    return std::sqrt(squares / (kCount - 1) / kCount);
  };
  const double tokens = static_cast<double>(kls.size());
  double mean_kl = 0;
  for (const double kl : kls) mean_kl += kl / tokens;
  std::ranges::sort(kls);

  const Comparison result = compare(teacher, student, ids, kLength);
  CHECK(result.teacher.sequences == kCount);
  CHECK(result.teacher.tokens == kls.size());
  CHECK(result.teacher.loss == Approx(teacher_loss / tokens).epsilon(1e-6));
  CHECK(result.student.loss == Approx(student_loss / tokens).epsilon(1e-6));
  CHECK(result.student.value() == Approx(std::exp(student_loss / tokens)).epsilon(1e-6));
  CHECK(result.kl == Approx(mean_kl).epsilon(1e-6));
  CHECK(*result.kl_standard_error == Approx(standard_error(sequence_kls)).epsilon(1e-5));
  CHECK(*result.loss_change_standard_error == Approx(standard_error(changes)).epsilon(1e-5));
  CHECK(result.kl_max == Approx(kls.back()).epsilon(1e-6));
  CHECK(result.kl_95 == Approx(kls[62]).epsilon(1e-6));  // 63 of 66: the first that reaches 95 %
  CHECK(result.top1_agreement == Approx(agreements / tokens));
  CHECK(result.top1_agreement < 1);
}

TEST_CASE("threads, blocks of logits and what is read together change no bit") {
  const Transformer teacher = random_transformer(1);
  const Transformer student = random_transformer(2);
  const std::vector<TokenId> ids = random_sequences(40);  // more than one pass reads
  const Comparison once = compare(teacher, student, ids, kLength);
  CHECK(same(once, compare(random_transformer(1, 3), random_transformer(2, 2), ids, kLength)));
  for (const std::size_t rows : {0u, 1u, 7u}) {
    const std::size_t bytes = rows * 2 * kVocabulary * sizeof(float);
    CHECK(same(once, compare(teacher, student, ids, kLength, {.logits_bytes = bytes})));
  }
  // A sequence's own measure does not depend on those beside it.
  const Comparison first = compare(teacher, student, std::span(ids).first(kLength), kLength);
  const Comparison rest = compare(teacher, student, std::span(ids).subspan(kLength), kLength);
  CHECK(once.kl == Approx((first.kl + 39 * rest.kl) / 40).epsilon(1e-13));
  CHECK_FALSE(first.kl_standard_error.has_value());
  CHECK_FALSE(first.teacher.loss_standard_error.has_value());
}

TEST_CASE("a perplexity alone is the one that a comparison finds") {
  const Transformer model = random_transformer(1);
  const std::vector<TokenId> ids = random_sequences(3);
  const Perplexity alone = perplexity(model, ids, kLength);
  const Comparison beside = compare(model, random_transformer(2), ids, kLength);
  CHECK(alone.loss == beside.teacher.loss);
  CHECK(alone.loss_standard_error == beside.teacher.loss_standard_error);
  CHECK(alone.tokens == 3 * (kLength - 1));
}

TEST_CASE("a divergence far below the rounding of a normaliser is still measured") {
  const TemporaryDirectory directory;
  const std::string json = tiny_config("llama", 2);
  write_checkpoint(directory / "model", json, tensors_of(parse_model_config(json), "F32"), 1);
  const Checkpoint checkpoint = Checkpoint::open(directory / "model");
  const Transformer teacher(checkpoint.config(), ModelWeights::load(checkpoint), 1);
  ModelWeights weights = ModelWeights::load(checkpoint);
  for (float& w : weights.norm) w *= 1 + 1e-5f;
  const Transformer student(checkpoint.config(), weights, 1);
  const std::vector<TokenId> ids = random_sequences(2);
  double naive = 0;
  for (std::size_t s = 0; s < 2; ++s) {
    const auto p = log_probabilities(teacher, std::span(ids).subspan(s * kLength, kLength));
    const auto q = log_probabilities(student, std::span(ids).subspan(s * kLength, kLength));
    for (std::size_t r = 0; r + 1 < kLength; ++r) {
      for (std::size_t i = 0; i < kVocabulary; ++i) naive += std::exp(p[r][i]) * (p[r][i] - q[r][i]);
    }
  }
  naive /= 2 * (kLength - 1);
  const Comparison result = compare(teacher, student, ids, kLength);
  CHECK(naive < 1e-8);
  CHECK(result.kl == Approx(naive).epsilon(1e-3));
}

TEST_CASE("what cannot be compared is refused with its reason") {
  const Transformer model = random_transformer(1);
  std::vector<TokenId> ids = random_sequences(2);
  const auto refuses = [&](const Transformer& student, std::span<const TokenId> sequences, std::size_t length,
                           const std::string& text) {
    CHECK_THROWS_AS(compare(model, student, sequences, length), InvalidArgument);
    CHECK_THROWS_WITH(compare(model, student, sequences, length), Contains(text));
  };
  const Transformer other = random_transformer(1, 1, R"(,"vocab_size":98)");
  refuses(other, ids, kLength, "97 and 98 tokens");
  refuses(model, ids, 1, "at least 2 tokens");
  refuses(model, ids, 0, "at least 2 tokens");
  refuses(model, ids, 45, "46 tokens in sequences of 45");
  refuses(model, {}, kLength, "one or more");
  ids[kLength + 4] = 97;
  refuses(model, ids, kLength, "token 4 of sequence 1: expected 0 to 96, got 97");
  CHECK_THROWS_AS(perplexity(model, random_sequences(1, 402), 402), ContextOverflow);
  CHECK(perplexity(model, random_sequences(1, 401), 401).tokens == 400);
}

TEST_CASE("logits that are not finite are an error, not a number") {
  const TemporaryDirectory directory;
  const Checkpoint checkpoint = random_checkpoint(directory / "model", tiny_config("llama", 1));
  for (const float broken : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::max()}) {
    ModelWeights weights = ModelWeights::load(checkpoint);
    for (float& w : weights.norm) w = broken;
    const Transformer model(checkpoint.config(), weights, 1);
    CHECK_THROWS_WITH(perplexity(model, random_sequences(1), kLength), Contains("check the model's weights"));
  }
}

TEST_CASE("progress counts tokens, never falls, and stops the work") {
  const Transformer teacher = random_transformer(1);
  const Transformer student = random_transformer(2);
  const std::vector<TokenId> ids = random_sequences(40);
  std::vector<std::uint64_t> seen;
  const Progress note = [&](std::string_view, std::uint64_t done, std::uint64_t total) {
    CHECK(total == 40 * (kLength - 1));
    seen.push_back(done);
    return true;
  };
  compare(teacher, student, ids, kLength, {}, note);
  CHECK(std::ranges::is_sorted(seen));
  CHECK(seen.front() == 0);
  CHECK(seen.back() == 40 * (kLength - 1));
  std::size_t calls = 0;
  const Progress stop = [&](std::string_view, std::uint64_t, std::uint64_t) { return ++calls < 4; };
  CHECK_THROWS_AS(compare(teacher, student, ids, kLength, {}, stop), Cancelled);
  CHECK(calls == 4);
}
