// SPDX-License-Identifier: Apache-2.0
#include "normalizer.hpp"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "component.hpp"
#include "pattern.hpp"
#include "unicode.hpp"

namespace modicum::text {
namespace {

class SequenceNormalizer : public Normalizer {
 public:
  explicit SequenceNormalizer(std::vector<std::unique_ptr<const Normalizer>> steps)
      : steps_(std::move(steps)) {}
  void apply(NormalizedText& text) const override {
    for (const auto& step : steps_) step->apply(text);
  }

 private:
  std::vector<std::unique_ptr<const Normalizer>> steps_;
};

class PrependNormalizer : public Normalizer {
 public:
  explicit PrependNormalizer(std::string prefix) : prefix_(std::move(prefix)) {}
  void apply(NormalizedText& text) const override { text.prepend(prefix_); }

 private:
  std::string prefix_;
};

class ReplaceNormalizer : public Normalizer {
 public:
  ReplaceNormalizer(Pattern pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}
  void apply(NormalizedText& text) const override { replace(text, pattern_, content_); }

 private:
  Pattern pattern_;
  std::string content_;
};

class FormNormalizer : public Normalizer {
 public:
  explicit FormNormalizer(NormalForm form) : form_(form) {}
  void apply(NormalizedText& text) const override {
    // Nearly all text is in NFC already, and then nothing moves.
    if (form_ == NormalForm::nfc ? is_surely_nfc(text.text()) : is_ascii(text.text())) return;
    text.transform(normalize(text.text(), form_));
  }

 private:
  NormalForm form_;
};

class LowercaseNormalizer : public Normalizer {
 public:
  void apply(NormalizedText& text) const override {
    std::vector<Change> changes;
    const std::string_view old = text.text();
    changes.reserve(old.size());
    bool changed = false;
    for (std::size_t at = 0; at < old.size();) {
      const char32_t c = next_code_point(old, at);
      const auto lower = lowercase(c);
      if (lower.empty()) changes.push_back({c, 0});
      for (std::size_t i = 0; i < lower.size(); ++i) changes.push_back({lower[i], i > 0});
      changed |= !lower.empty();
    }
    if (changed) text.transform(changes);
  }
};

class StripNormalizer : public Normalizer {
 public:
  StripNormalizer(bool left, bool right) : left_(left), right_(right) {}
  void apply(NormalizedText& text) const override {
    const std::string_view old = text.text();
    std::size_t begin = 0, end = old.size();
    for (std::size_t at = 0; left_ && at < end && has_flag(next_code_point(old, at), kWhiteSpace);)
      begin = at;
    while (right_ && end > begin) {
      const char32_t last = last_code_point(old.substr(0, end));
      if (!has_flag(last, kWhiteSpace)) break;
      end -= utf8_length(last);
    }
    if (begin > 0 || end < old.size()) text.keep(begin, end);
  }

 private:
  bool left_, right_;
};

std::unique_ptr<const Normalizer> parse(const Json& json, int depth) {
  const Component part(json, "normalizer", depth);
  const std::string& type = part.type();
  if (type == "Sequence") {
    std::vector<std::unique_ptr<const Normalizer>> steps;
    for (const Json& step : part.list("normalizers")) steps.push_back(parse(step, depth + 1));
    return std::make_unique<SequenceNormalizer>(std::move(steps));
  }
  if (type == "Prepend") return std::make_unique<PrependNormalizer>(part.fields().text("prepend"));
  if (type == "Replace") {
    return std::make_unique<ReplaceNormalizer>(part.pattern(), part.fields().text("content"));
  }
  if (type == "NFC") return std::make_unique<FormNormalizer>(NormalForm::nfc);
  if (type == "NFD") return std::make_unique<FormNormalizer>(NormalForm::nfd);
  if (type == "NFKC") return std::make_unique<FormNormalizer>(NormalForm::nfkc);
  if (type == "NFKD") return std::make_unique<FormNormalizer>(NormalForm::nfkd);
  if (type == "Lowercase") return std::make_unique<LowercaseNormalizer>();
  if (type == "Strip")
    return std::make_unique<StripNormalizer>(part.flag("strip_left"), part.flag("strip_right"));
  part.unsupported();
}

}  // namespace

void replace(NormalizedText& text, const Pattern& pattern, std::string_view content) {
  std::vector<Match> matches;
  const std::string_view old = text.text();
  pattern.find(old, matches);
  if (std::none_of(matches.begin(), matches.end(), [](const Match& m) { return m.matched; })) return;
  std::string fresh;
  std::vector<Span> spans;
  fresh.reserve(old.size() + old.size() / 4);
  spans.reserve(old.size() + old.size() / 4);
  for (const Match& match : matches) {
    if (match.matched) {
      fresh += content;
      // As `tokenizers` has it: the last character replaced, or the one before where none was.
      spans.resize(fresh.size(), match.end == 0 ? text.origin() : text.span(match.end - 1));
    } else {
      fresh += old.substr(match.begin, match.end - match.begin);
      for (std::size_t i = match.begin; i < match.end; ++i) spans.push_back(text.span(i));
    }
  }
  text.rewrite(std::move(fresh), std::move(spans));
}

std::unique_ptr<const Normalizer> parse_normalizer(const Json& json) {
  return json.is_null() ? nullptr : parse(json, 0);
}

}  // namespace modicum::text
