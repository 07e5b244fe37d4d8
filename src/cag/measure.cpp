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

/// Up to eight spans of up to 32 tokens, evenly from the documents: what a question and its answer talk
/// about. As many fewer tokens a span as the context leaves.
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

/// Reads each span after both branches and compares the distributions of the next token. Both are of `tree`.
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

/// Measures forms of a cache on its own text.
class Assay {
 public:
  Assay(const Model& model, const KvTree& tree, Draft& draft)
      : transformer_(model.transformer()), tree_(tree), prompt_(draft.prompt), manifest_(draft.manifest) {
    // As much as fits at once: segments from the first on.
    const std::size_t context = model.config().max_position_embeddings;
    std::size_t tokens = 0;
    for (const PromptSegment& segment : prompt_.segments) {
      const std::size_t own = segment.token_end - segment.token_begin;
      if (tokens + own + std::min<std::size_t>(manifest_.reserve, 33) > context) break;
      tokens += own;
      ++taken_;
    }
    spans_ = probe_spans(prompt_, context - std::min(context, tokens));
    for (const auto& span : spans_) manifest_.certificate.tokens += span.size();
  }

  bool possible() const { return !spans_.empty() && taken_ > 0; }

  Measurement measure(const Reading& reference, const Reading& candidate, std::string what,
                      std::string against) {
    return record(trunk(reference), candidate, std::move(what), std::move(against));
  }

  /// Blocks beside one pass over the same text.
  void measure_blocks(const Reading& blocks) {
    if (taken_ != prompt_.segments.size()) return;  // one pass over all does not fit
    const Extension all{tree_.root(), prompt_.ids};
    record(transformer_.extend(tree_, {&all, 1}).front(), blocks, "blocks", "joint");
  }

 private:
  Measurement record(const Branch& reference, const Reading& candidate, std::string what,
                     std::string against) {
    Measurement m = compare(transformer_, tree_, reference, trunk(candidate), spans_);
    m.what = std::move(what);
    m.against = std::move(against);
    manifest_.certificate.measurements.push_back(m);
    return m;
  }

  Branch trunk(const Reading& reading) const {
    std::vector<std::size_t> chosen;
    for (std::size_t i = 0; i < reading.segments.size(); ++i) {
      if (manifest_.layout == Layout::joint || i < taken_) chosen.push_back(i);
    }
    return compose(transformer_, tree_, prompt_.ids, reading.segments, reading.rows, chosen,
                   manifest_.recompute);
  }

  const Transformer& transformer_;
  const KvTree& tree_;
  const SharedPrompt& prompt_;
  Manifest& manifest_;
  std::size_t taken_ = 0;
  std::vector<std::vector<TokenId>> spans_;
};

}  // namespace

Reading certify(const Model& model, const KvTree& tree, Draft& draft, const Reading& wide) {
  Manifest& manifest = draft.manifest;
  manifest.certificate.tokens = 0;
  manifest.certificate.measurements.clear();
  Assay assay(model, tree, draft);
  if (manifest.layout == Layout::blocks && assay.possible()) assay.measure_blocks(wide);
  if (!manifest.automatic && manifest.encoding == KvEncoding::wide) return wide;
  const std::vector<KvEncoding> tried =
      manifest.automatic ? std::vector{KvEncoding::int4, KvEncoding::int8} : std::vector{manifest.encoding};
  for (const KvEncoding encoding : tried) {
    if (encoding == KvEncoding::int4 && manifest.head_dim() % 2 != 0) continue;
    Reading coded = encode(wide, manifest, encoding);
    const double kl =
        assay.possible() ? assay.measure(wide, coded, std::string(name_of(encoding)), "wide").kl : 0;
    if (!manifest.automatic || (assay.possible() && kl <= manifest.certificate.bound)) {
      manifest.encoding = encoding;
      return coded;
    }
  }
  manifest.encoding = KvEncoding::wide;
  return wide;
}

}  // namespace modicum::cag
