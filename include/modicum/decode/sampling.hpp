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

/// How the next token is drawn. The names, meaning and order are transformers': repetition penalty,
/// temperature, top-k, top-p, min-p. The defaults choose greedily.
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
    fail({.op = op,
          .what = std::string(name),
          .expected = std::string(expected),
          .got = std::to_string(value)});
  }
}

/// The k-th largest of `values`, counting equal ones apart; 1 <= k <= their number.
inline float kth_largest(std::span<const float> values, std::size_t k) {
  constexpr std::size_t kBlock = 64;
  std::priority_queue<float, std::vector<float>, std::greater<>> best;
  for (std::size_t begin = 0; begin < values.size(); begin += kBlock) {
    const auto block = values.subspan(begin, std::min(kBlock, values.size() - begin));
    if (best.size() == k && !(largest(block) > best.top())) {
      continue;
    }
    for (const float value : block) {
      best.push(value);
      if (best.size() > k) {
        best.pop();
      }
    }
  }
  return best.top();
}

/// A logit below which no token can belong to the nucleus of `logits`: tokens less likely than (1 - top_p) /
/// n hold less than 1 - top_p together. Half of that, for the rounding.
inline float nucleus_floor(std::span<const float> logits, double top_p) {
  const float max = largest(logits);
  const double share = 0.5 * (1.0 - top_p) / static_cast<double>(logits.size());
  return max + static_cast<float>(std::log(share * exp_sum(logits, max)));
}

/// A token stays while those above it hold less than `mass`, in units of the likeliest one's probability; the
/// `least` likeliest always stay. Equal logits count in the order of their ids.
inline void keep_nucleus(std::vector<TokenLogit>& tokens, double mass, std::size_t least) {
  const auto less_likely = [](const TokenLogit& a, const TokenLogit& b) {
    return a.logit < b.logit || (a.logit == b.logit && a.token > b.token);
  };
  std::make_heap(tokens.begin(), tokens.end(), less_likely);  // only as much is sorted as is kept
  const float max = tokens.front().logit;
  double above = 0.0;
  auto heap_end = tokens.end();
  do {
    std::pop_heap(tokens.begin(), heap_end, less_likely);
    --heap_end;
    above += static_cast<double>(exp_nonpositive(heap_end->logit - max));
  } while (heap_end != tokens.begin() &&
           (above < mass || static_cast<std::size_t>(tokens.end() - heap_end) < least));
  tokens.erase(tokens.begin(), heap_end);
  std::ranges::sort(tokens, {}, &TokenLogit::token);
}

/// A token stays that is at least `min_p` times as likely as the likeliest, and the `least` likeliest.
inline void keep_min_p(std::vector<TokenLogit>& tokens, float max, double min_p, std::size_t least) {
  float safe = std::numeric_limits<float>::infinity();  // as likely as this is likely enough
  if (least > 1 && !tokens.empty()) {
    std::vector<float> logits;
    for (const TokenLogit& t : tokens) logits.push_back(t.logit);
    safe = kth_largest(logits, std::min(least, logits.size()));
  }
  std::erase_if(tokens, [&](const TokenLogit& t) {
    return t.logit < safe && std::exp(static_cast<double>(t.logit) - static_cast<double>(max)) < min_p;
  });
}

inline float largest_logit(std::span<const TokenLogit> tokens) {
  float max = -std::numeric_limits<float>::infinity();
  for (const TokenLogit& t : tokens) {
    max = std::max(max, t.logit);
  }
  return max;
}

/// The sum of exp(logit - max).
inline double sum_exp(std::span<const TokenLogit> tokens, float max) {
  double total = 0.0;
  for (const TokenLogit& t : tokens) {
    total += static_cast<double>(exp_nonpositive(t.logit - max));
  }
  return total;
}

}  // namespace detail

/// Throws `InvalidArgument` naming the field that makes no sense.
inline void validate(const SamplingOptions& o, std::string_view op = "sampling") {
  using detail::check_range;
  check_range(op, "temperature", o.temperature,
              o.temperature == 0.0 || (o.temperature >= 1e-5 && o.temperature <= 1e5),
              "0 (greedy), or 1e-5 to 1e5");
  check_range(op, "top_p", o.top_p, o.top_p >= 0.0 && o.top_p <= 1.0, "0 to 1");
  check_range(op, "min_p", o.min_p, o.min_p >= 0.0 && o.min_p <= 1.0, "0 to 1");
  check_range(op, "repetition_penalty", o.repetition_penalty,
              o.repetition_penalty > 0.0 && std::isfinite(o.repetition_penalty), "a finite number above 0");
}

/// The tokens that temperature, top-k, top-p and min-p leave, in ascending order of id: those of
/// transformers' warpers in their order, each renormalising what the one before left. `logits`: f32
/// [vocabulary], -inf for impossible tokens, divided by the temperature in place unless that is 0. `kept` is
/// overwritten. Each filter leaves at least `least` tokens where it finds as many (min_tokens_to_keep).
inline void warp(std::span<float> logits, const SamplingOptions& options, std::vector<TokenLogit>& kept,
                 std::size_t least = 1) {
  kept.clear();
  const float temperature = options.temperature > 0.0 ? static_cast<float>(options.temperature) : 1.0f;
  for (float& logit : logits) {
    logit /= temperature;
  }
  const std::span<const float> scaled = logits;
  const std::size_t top_k = std::max(options.top_k, least);
  const bool has_top_k = options.top_k > 0 && top_k < logits.size();
  const bool has_top_p = options.top_p < 1.0;
  float floor = has_top_k   ? detail::kth_largest(scaled, top_k)
                : has_top_p ? detail::nucleus_floor(scaled, options.top_p)
                            : std::numeric_limits<float>::lowest();
  if (least > 1 && !has_top_k && has_top_p) {
    floor = std::min(floor, detail::kth_largest(scaled, std::min(least, scaled.size())));
  }
  for (std::size_t i = 0; i < scaled.size(); ++i) {
    if (scaled[i] >= floor && scaled[i] >= std::numeric_limits<float>::lowest()) {
      kept.push_back({static_cast<TokenId>(i), scaled[i]});
    }
  }
  const float max = detail::largest_logit(kept);
  if (has_top_p && !kept.empty()) {
    const double total = has_top_k ? detail::sum_exp(kept, max) : exp_sum(scaled, max);
    detail::keep_nucleus(kept, options.top_p * total, least);
  }
  if (options.min_p > 0.0) detail::keep_min_p(kept, max, options.min_p, least);
}

/// The same in place: what is left keeps its logit over the temperature, the rest becomes -inf.
inline void warp(std::span<float> logits, const SamplingOptions& options, std::size_t least = 1) {
  std::vector<TokenLogit> kept;
  warp(logits, options, kept, least);
  std::ranges::fill(logits, -std::numeric_limits<float>::infinity());
  for (const TokenLogit& t : kept) {
    logits[static_cast<std::size_t>(t.token)] = t.logit;
  }
}

/// Chooses tokens, one after another, from processed logits.
class Sampler {
 public:
  /// Throws `InvalidArgument` for options that make no sense.
  explicit Sampler(const SamplingOptions& options) : options_(options), random_(options.seed) {
    validate(options);
  }

  /// The likeliest token (the lowest id among equals) at temperature 0; otherwise one draw by inversion of
  /// the distribution over the tokens that are left, in ascending order of id. `logits`: f32 [vocabulary],
  /// not NaN, divided by the temperature in place. Throws `InvalidArgument` when no token is possible.
  TokenId pick(std::span<float> logits) {
    const TokenId token = options_.temperature == 0.0 ? likeliest(logits) : draw(logits);
    if (token < 0) {
      fail({.op = "sampling",
            .what = "largest logit",
            .expected = "a finite number",
            .got = std::to_string(largest(logits))});
    }
    return token;
  }

 private:
  static TokenId likeliest(std::span<const float> logits) {
    const float max = largest(logits);
    const auto found = std::ranges::find(logits, max);
    return std::isfinite(max) ? static_cast<TokenId>(found - logits.begin()) : TokenId{-1};
  }

  TokenId draw(std::span<float> logits) {
    warp(logits, options_, kept_);
    const float max = detail::largest_logit(kept_);
    const double total = detail::sum_exp(kept_, max);
    if (!(total > 0.0) || !std::isfinite(total)) {
      return -1;
    }
    const double point = random_.uniform() * total;
    double cumulative = 0.0;
    TokenId last_possible = -1;  // meant where the product above rounds up to the total
    for (const TokenLogit& t : kept_) {
      const double weight = static_cast<double>(exp_nonpositive(t.logit - max));
      cumulative += weight;
      last_possible = weight > 0.0 ? t.token : last_possible;
      if (point < cumulative) {
        break;
      }
    }
    return last_possible;
  }

  SamplingOptions options_;
  Random random_;
  std::vector<TokenLogit> kept_;
};

}  // namespace modicum
