// SPDX-License-Identifier: Apache-2.0
#include "measure.hpp"

#include <algorithm>
#include <cmath>

#include <modicum/decode/log_softmax.hpp>

namespace modicum::cag {
namespace {

constexpr std::size_t kSpans = 8;
constexpr std::size_t kSpanTokens = 32;

/// f32 [span, vocabulary]
std::vector<float> logits_after(const Transformer& transformer, const KvTree& tree, const Branch& trunk,
                                std::span<const TokenId> span) {
  Matrix hidden;
  const Extension extension{trunk, span};
  transformer.extend(tree, {&extension, 1}, &hidden);
  std::vector<float> logits(span.size() * transformer.config().vocab_size);
  transformer.logits_of(hidden.row(0).data(), span.size(), logits.data());
  return logits;
}

double divergence(std::span<const float> p, std::span<const float> q) {
  const LogNormaliser of_p = log_normaliser(p);
  const LogNormaliser of_q = log_normaliser(q);
  double sum = 0;
  for (std::size_t i = 0; i < p.size(); ++i) {
    const double log_p = of_p(p[i]);
    sum += std::exp(log_p) * (log_p - static_cast<double>(of_q(q[i])));
  }
  return std::max(sum, 0.0);
}

}  // namespace

std::vector<std::vector<TokenId>> probe_spans(const SharedPrompt& prompt, std::size_t room) {
  std::vector<TokenId> text;
  for (const DocumentSpan& span : prompt.documents) {
    text.insert(text.end(), prompt.ids.begin() + static_cast<std::ptrdiff_t>(span.token_begin),
                prompt.ids.begin() + static_cast<std::ptrdiff_t>(span.token_end));
  }
  const std::size_t size = std::min({kSpanTokens, room, text.size()});
  std::vector<std::vector<TokenId>> spans;
  if (size == 0) return spans;
  const std::size_t count = std::min(kSpans, text.size() / size);
  for (std::size_t i = 0; i < count; ++i) {
    const auto begin = text.begin() + static_cast<std::ptrdiff_t>(i * (text.size() - size) /
                                                                  std::max<std::size_t>(1, count - 1));
    spans.emplace_back(begin, begin + static_cast<std::ptrdiff_t>(size));
  }
  return spans;
}

Measurement compare(const Transformer& transformer, const KvTree& tree, const Branch& reference,
                    const Branch& candidate, std::span<const std::vector<TokenId>> spans) {
  const std::size_t vocabulary = transformer.config().vocab_size;
  Measurement result;
  double kl = 0, loss_change = 0, same = 0;
  std::size_t count = 0, predicted = 0;
  for (const auto& span : spans) {
    const std::vector<float> a = logits_after(transformer, tree, reference, span);
    const std::vector<float> b = logits_after(transformer, tree, candidate, span);
    for (std::size_t i = 0; i < span.size(); ++i, ++count) {
      const auto p = std::span(a).subspan(i * vocabulary, vocabulary);
      const auto q = std::span(b).subspan(i * vocabulary, vocabulary);
      kl += divergence(p, q);
      same += std::ranges::max_element(p) - p.begin() == std::ranges::max_element(q) - q.begin() ? 1 : 0;
      if (i + 1 == span.size()) continue;
      const auto next = static_cast<std::size_t>(span[i + 1]);
      loss_change +=
          static_cast<double>(log_normaliser(p)(p[next])) - static_cast<double>(log_normaliser(q)(q[next]));
      ++predicted;
    }
  }
  if (count > 0) result.kl = kl / static_cast<double>(count);
  if (count > 0) result.top1_agreement = same / static_cast<double>(count);
  if (predicted > 0) result.perplexity_change = std::exp(loss_change / static_cast<double>(predicted)) - 1;
  return result;
}

}  // namespace modicum::cag
