// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <queue>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <modicum/base/error.hpp>
#include <modicum/decode/log_softmax.hpp>
#include <modicum/decode/random.hpp>
#include <modicum/text/tokenizer.hpp>

namespace modicum {

/// How the next token is drawn. The names, meaning and order are transformers': repetition penalty, temperature,
/// top-k, top-p, min-p. The defaults choose greedily.
struct SamplingOptions {
  double temperature = 0.0;         ///< logits are divided by it; 0 chooses the likeliest token
  std::size_t top_k = 0;            ///< keep the k likeliest and those equal to the k-th; 0 keeps all
  double top_p = 1.0;               ///< keep the fewest tokens whose probabilities reach it; 1 keeps all
  double min_p = 0.0;               ///< keep tokens at least this times as likely as the likeliest
  double repetition_penalty = 1.0;  ///< > 1 discourages tokens of the prompt and of the answer; greedy too
  std::uint64_t seed = 0;           ///< of the generator `Random`
};

/// A token that may be drawn, with its logit after temperature.
struct TokenLogit {
  TokenId token;
  float logit;
};

namespace detail {

inline void check_range(std::string_view op, std::string_view name, double value, bool valid,
                        std::string_view expected) {
  if (!valid) {
    fail({.op = op, .what = std::string(name), .expected = std::string(expected), .got = std::to_string(value)});
  }
}

/// The k-th largest of `values`, counting equal ones apart.
inline float kth_largest(std::span<const float> values, std::size_t k) {
  std::priority_queue<float, std::vector<float>, std::greater<>> best;
  for (const float value : values) {
    if (best.size() < k) {
      best.push(value);
    } else if (value > best.top()) {
      best.pop();
      best.push(value);
    }
  }
  return best.top();
}

/// A token stays while those above it hold less than `top_p` of the probability; the likeliest always stays. Equal
/// logits count in the order of their ids.
inline void keep_nucleus(std::vector<TokenLogit>& tokens, double top_p) {
  const auto less_likely = [](const TokenLogit& a, const TokenLogit& b) {
    return a.logit < b.logit || (a.logit == b.logit && a.token > b.token);
  };
  std::make_heap(tokens.begin(), tokens.end(), less_likely);  // only as much is sorted as is kept
  const float max = tokens.front().logit;
  double total = 0.0;
  for (const TokenLogit& t : tokens) {
    total += static_cast<double>(exp_nonpositive(t.logit - max));
  }
  double above = 0.0;
  auto heap_end = tokens.end();
  do {
    std::pop_heap(tokens.begin(), heap_end, less_likely);
    --heap_end;
    above += static_cast<double>(exp_nonpositive(heap_end->logit - max));
  } while (heap_end != tokens.begin() && above < top_p * total);
  tokens.erase(tokens.begin(), heap_end);
  std::sort(tokens.begin(), tokens.end(), [](auto& a, auto& b) { return a.token < b.token; });
}

inline void keep_relative(std::vector<TokenLogit>& tokens, double min_p) {
  float max = -std::numeric_limits<float>::infinity();
  for (const TokenLogit& t : tokens) {
    max = std::max(max, t.logit);
  }
  std::erase_if(tokens, [&](const TokenLogit& t) { return std::exp(static_cast<double>(t.logit - max)) < min_p; });
}

}  // namespace detail

/// Throws `InvalidArgument` naming the field that makes no sense.
inline void validate(const SamplingOptions& o, std::string_view op = "sampling") {
  using detail::check_range;
  check_range(op, "temperature", o.temperature, o.temperature >= 0.0 && std::isfinite(o.temperature),
              "a finite number of at least 0 (0 is greedy)");
  check_range(op, "top_p", o.top_p, o.top_p >= 0.0 && o.top_p <= 1.0, "0 to 1");
  check_range(op, "min_p", o.min_p, o.min_p >= 0.0 && o.min_p <= 1.0, "0 to 1");
  check_range(op, "repetition_penalty", o.repetition_penalty,
              o.repetition_penalty > 0.0 && std::isfinite(o.repetition_penalty), "a finite number above 0");
}

/// The tokens that temperature, top-k, top-p and min-p leave, in ascending order of id: those of transformers'
/// warpers in their order, each renormalising what the one before left. `logits`: f32 [vocabulary], -inf for
/// impossible tokens. Temperature 0 scales nothing. `kept` is overwritten.
inline void warp(std::span<const float> logits, const SamplingOptions& options, std::vector<TokenLogit>& kept) {
  kept.clear();
  const float temperature = options.temperature > 0.0 ? static_cast<float>(options.temperature) : 1.0f;
  const bool limited = options.top_k > 0 && options.top_k < logits.size();
  const float threshold = limited ? detail::kth_largest(logits, options.top_k) / temperature
                                  : -std::numeric_limits<float>::infinity();
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const float logit = logits[i] / temperature;
    if (logit >= threshold && logit > -std::numeric_limits<float>::infinity()) {
      kept.push_back({static_cast<TokenId>(i), logit});
    }
  }
  if (options.top_p < 1.0 && !kept.empty()) {
    detail::keep_nucleus(kept, options.top_p);
  }
  if (options.min_p > 0.0) {
    detail::keep_relative(kept, options.min_p);
  }
}

/// The same in place: what is left keeps its logit over the temperature, the rest becomes -inf.
inline void warp(std::span<float> logits, const SamplingOptions& options) {
  std::vector<TokenLogit> kept;
  warp(std::span<const float>(logits), options, kept);
  std::fill(logits.begin(), logits.end(), -std::numeric_limits<float>::infinity());
  for (const TokenLogit& t : kept) {
    logits[static_cast<std::size_t>(t.token)] = t.logit;
  }
}

/// Chooses tokens, one after another, from processed logits.
class Sampler {
 public:
  /// Throws `InvalidArgument` for options that make no sense.
  explicit Sampler(const SamplingOptions& options) : options_(options), random_(options.seed) { validate(options); }

  /// The likeliest token (the lowest id among equals) at temperature 0; otherwise one draw by inversion of the
  /// distribution over the tokens that are left, in ascending order of id. `logits`: f32 [vocabulary], not NaN.
  /// Throws `InvalidArgument` when no token is possible.
  TokenId pick(std::span<const float> logits) {
    const TokenId token = options_.temperature == 0.0 ? likeliest(logits) : draw(logits);
    if (token < 0) {
      fail({.op = "sampling", .what = "logits", .expected = "a finite one", .got = "none"});
    }
    return token;
  }

 private:
  static TokenId likeliest(std::span<const float> logits) {
    const float max = largest(logits);
    const auto found = std::find(logits.begin(), logits.end(), max);
    return std::isfinite(max) ? static_cast<TokenId>(found - logits.begin()) : TokenId{-1};
  }

  TokenId draw(std::span<const float> logits) {
    warp(logits, options_, kept_);
    float max = -std::numeric_limits<float>::infinity();
    for (const TokenLogit& t : kept_) {
      max = std::max(max, t.logit);
    }
    cumulative_.clear();
    double total = 0.0;
    for (const TokenLogit& t : kept_) {
      cumulative_.push_back(total += static_cast<double>(exp_nonpositive(t.logit - max)));
    }
    if (!(total > 0.0) || !std::isfinite(total)) {
      return -1;
    }
    // uniform() < 1, yet the product may round up to the total: then the last token that has any weight is meant.
    const double point = random_.uniform() * total;
    auto chosen = std::upper_bound(cumulative_.begin(), cumulative_.end(), point);
    if (chosen == cumulative_.end()) {
      chosen = std::lower_bound(cumulative_.begin(), cumulative_.end(), total);
    }
    return kept_[static_cast<std::size_t>(chosen - cumulative_.begin())].token;
  }

  SamplingOptions options_;
  Random random_;
  std::vector<TokenLogit> kept_;
  std::vector<double> cumulative_;
};

}  // namespace modicum
