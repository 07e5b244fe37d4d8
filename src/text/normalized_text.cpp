// SPDX-License-Identifier: Apache-2.0
#include "normalized_text.hpp"

#include <algorithm>

namespace modicum::text {

void NormalizedText::rewrite(std::string text, std::vector<Span> spans) {
  own_ = std::move(text);
  spans_ = std::move(spans);
  rewritten_ = true;
}

void NormalizedText::transform(std::span<const Change> changes) {
  const std::string_view old = text();
  std::string fresh;
  std::vector<Span> spans;
  fresh.reserve(old.size());
  spans.reserve(old.size());
  std::size_t at = 0;
  const auto skip = [&](int count) {
    for (; count > 0 && at < old.size(); --count) at += utf8_length_at(old, at);
  };
  for (const Change& change : changes) {
    // A new character shares the place of the one before it; the bounds guard against more changes than text.
    const std::size_t place = change.change > 0 ? at - (at > 0) : std::min(at, old.size() - 1);
    const Span from = change.change > 0 && at == 0 ? origin() : span(place);
    append_utf8(fresh, change.code_point);
    spans.resize(fresh.size(), from);
    if (change.change <= 0) skip(1 - change.change);
  }
  rewrite(std::move(fresh), std::move(spans));
}

void NormalizedText::keep(std::size_t begin, std::size_t end) {
  if (!rewritten_) {
    part_ = part_.substr(begin, end - begin);
    offset_ += static_cast<std::uint32_t>(begin);
    return;
  }
  own_ = own_.substr(begin, end - begin);
  spans_ = std::vector<Span>(spans_.begin() + static_cast<std::ptrdiff_t>(begin),
                             spans_.begin() + static_cast<std::ptrdiff_t>(end));
}

void NormalizedText::prepend(std::string_view prefix) {
  if (empty() || prefix.empty()) return;
  const std::string_view old = text();
  std::vector<Span> spans(prefix.size(), span(0));
  spans.reserve(prefix.size() + old.size());
  for (std::size_t i = 0; i < old.size(); ++i) spans.push_back(span(i));
  std::string fresh(prefix);
  fresh += old;
  rewrite(std::move(fresh), std::move(spans));
}

NormalizedText NormalizedText::slice(std::size_t begin, std::size_t end) const {
  NormalizedText copy(part_, offset_);
  if (rewritten_) {
    copy.offset_ = spans_[begin].begin;
    copy.rewrite(own_.substr(begin, end - begin),
                 std::vector<Span>(spans_.begin() + static_cast<std::ptrdiff_t>(begin),
                                   spans_.begin() + static_cast<std::ptrdiff_t>(end)));
  } else {
    copy.keep(begin, end);
  }
  return copy;
}

}  // namespace modicum::text
