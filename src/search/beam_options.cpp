// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include <modicum/base/error.hpp>
#include <modicum/search/beam_options.hpp>

namespace modicum {
namespace {

void check_tokens(std::string_view name, std::span<const TokenId> ids, std::size_t vocabulary) {
  for (const TokenId id : ids) {
    if (id < 0 || static_cast<std::size_t>(id) >= vocabulary) {
      fail({.op = "beam",
            .what = std::string(name),
            .expected = "token ids 0 to " + std::to_string(vocabulary - 1),
            .got = std::to_string(id)});
    }
  }
}

void check_sequence(std::string_view name, std::span<const TokenId> ids, std::size_t vocabulary) {
  if (ids.empty()) {
    fail({.op = "beam", .what = std::string(name), .expected = "at least one token each", .got = "none"});
  }
  check_tokens(name, ids, vocabulary);
}

void check_processors(const BeamOptions& o, std::size_t vocabulary) {
  detail::check_range("beam", "repetition_penalty", o.repetition_penalty,
                      o.repetition_penalty > 0.0 && std::isfinite(o.repetition_penalty),
                      "a finite number above 0");
  for (const auto& word : o.bad_words) check_sequence("bad_words", word, vocabulary);
  for (const SequenceBias& entry : o.sequence_bias) {
    check_sequence("sequence_bias", entry.ids, vocabulary);
    detail::check_range("beam", "sequence_bias", static_cast<double>(entry.bias), !std::isnan(entry.bias),
                        "a number");
  }
  if (o.forced_bos) check_tokens("forced_bos", {&*o.forced_bos, 1}, vocabulary);
  check_tokens("forced_eos", o.forced_eos, vocabulary);
  check_tokens("suppress", o.suppress, vocabulary);
  check_tokens("begin_suppress", o.begin_suppress, vocabulary);
  validate(o.sampling, "beam");
}

void check_groups(const BeamOptions& o) {
  if (o.groups == 0 || o.beams % o.groups != 0) {
    fail({.op = "beam",
          .what = "groups",
          .expected = "a divisor of beams (" + std::to_string(o.beams) + ")",
          .got = std::to_string(o.groups)});
  }
  detail::check_range("beam", "diversity_penalty", o.diversity_penalty,
                      o.diversity_penalty >= 0.0 && std::isfinite(o.diversity_penalty),
                      "a finite number, at least 0");
}

void check_tokenizer(const BeamHooks& hooks) {
  if (hooks.constraint == nullptr || hooks.tokenizer == nullptr) return;
  const std::string_view theirs = hooks.constraint->tokenizer_fingerprint();
  if (!theirs.empty() && theirs != hooks.tokenizer->fingerprint()) {
    fail<FingerprintMismatch>({.op = "beam",
                               .what = "the constraint's tokenizer",
                               .expected = hooks.tokenizer->fingerprint(),
                               .got = std::string(theirs),
                               .todo = "build it with this model's tokenizer"});
  }
}

}  // namespace

void validate(const BeamOptions& o, const BeamHooks& hooks, std::size_t vocabulary) {
  if (o.beams == 0 || o.beams > vocabulary) {
    fail({.op = "beam",
          .what = "beams",
          .expected = "1 to the vocabulary's " + std::to_string(vocabulary) + " tokens",
          .got = std::to_string(o.beams)});
  }
  if (o.num_return == 0 || o.num_return > o.beams) {
    fail({.op = "beam",
          .what = "num_return",
          .expected = "1 to beams (" + std::to_string(o.beams) + ")",
          .got = std::to_string(o.num_return)});
  }
  detail::check_lengths("beam", o.min_new_tokens, o.max_new_tokens);
  detail::check_stop_ids("beam", o.stop_ids, vocabulary);
  detail::check_range("beam", "length_penalty", o.length_penalty, std::isfinite(o.length_penalty),
                      "a finite number");
  if (std::ranges::any_of(o.stop, &std::string::empty)) {
    fail({.op = "beam", .what = "stop", .expected = "text", .got = "an empty string"});
  }
  if (!o.stop.empty() && hooks.tokenizer == nullptr) {
    fail({.op = "beam", .what = "stop", .expected = "a tokenizer with stop strings", .got = "none"});
  }
  check_processors(o, vocabulary);
  check_groups(o);
  check_tokenizer(hooks);
  const std::size_t needed = std::max<std::size_t>(2, 1 + o.stop_ids.size());
  if (vocabulary < needed) {
    fail({.op = "beam",
          .what = "vocabulary",
          .expected = "at least " + std::to_string(needed) + " tokens, one more than stop_ids",
          .got = std::to_string(vocabulary)});
  }
}

}  // namespace modicum
