// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>

#include <modicum/base/error.hpp>
#include <modicum/cag/select.hpp>

#include "words.hpp"

namespace modicum::cag {
namespace {

constexpr std::string_view kOp = "cag.select";

void check(std::size_t texts, const Bm25Options& options) {
  if (!(options.k1 >= 0) || !std::isfinite(options.k1)) {
    fail({.op = kOp, .what = "k1", .expected = "a number from 0", .got = std::to_string(options.k1)});
  }
  if (!(options.b >= 0 && options.b <= 1)) {
    fail({.op = kOp, .what = "b", .expected = "a number from 0 to 1", .got = std::to_string(options.b)});
  }
  if (texts > std::numeric_limits<std::uint32_t>::max()) {
    fail({.op = kOp, .what = "texts", .expected = "fewer than 2^32", .got = std::to_string(texts)});
  }
}

/// How often a word stands in a text.
struct Occurrence {
  std::uint32_t word;
  std::uint32_t text;
  std::uint32_t count;
};

}  // namespace

Bm25::Bm25(std::span<const std::string_view> texts, const Bm25Options& options) {
  check(texts.size(), options);
  std::vector<Occurrence> occurrences;  // by text
  std::vector<std::size_t> lengths;
  std::vector<std::size_t> last;  // occurrence of each word, in the last text that had it
  std::size_t total = 0;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const std::size_t first = occurrences.size();
    std::size_t length = 0;
    for_each_word(texts[i], [&](std::string_view word) {
      ++length;
      auto found = words_.find(word);
      if (found == words_.end()) {
        found = words_.emplace(std::string(word), static_cast<std::uint32_t>(words_.size())).first;
        last.push_back(std::numeric_limits<std::size_t>::max());
      }
      std::size_t& at = last[found->second];
      if (at < first || at >= occurrences.size()) {
        at = occurrences.size();
        occurrences.push_back({found->second, static_cast<std::uint32_t>(i), 0});
      }
      ++occurrences[at].count;
    });
    lengths.push_back(length);
    total += length;
  }

  begins_.assign(words_.size() + 1, 0);
  for (const Occurrence& occurrence : occurrences) ++begins_[occurrence.word + 1];
  for (std::size_t word = 0; word < words_.size(); ++word) begins_[word + 1] += begins_[word];
  std::vector<std::size_t> next(begins_.begin(), begins_.end() - 1);
  postings_.resize(occurrences.size());
  for (const Occurrence& occurrence : occurrences) {
    postings_[next[occurrence.word]++] = {occurrence.text, occurrence.count};
  }

  const double mean =
      static_cast<double>(total) / static_cast<double>(std::max<std::size_t>(texts.size(), 1));
  for (const std::size_t length : lengths) {
    const double relative = total == 0 ? 0.0 : static_cast<double>(length) / mean;
    penalties_.push_back(options.k1 * (1 - options.b + options.b * relative));
  }
}

std::vector<Ranked> Bm25::rank(std::string_view question, std::size_t k) const {
  std::vector<double> scores(size(), 0.0);
  for_each_word(question, [&](std::string_view word) {
    const auto found = words_.find(word);
    if (found == words_.end()) return;
    const std::span<const Posting> postings = std::span(postings_).subspan(
        begins_[found->second], begins_[found->second + 1] - begins_[found->second]);
    const double n = static_cast<double>(postings.size());
    const double idf = std::log(1 + (static_cast<double>(size()) - n + 0.5) / (n + 0.5));
    for (const Posting& posting : postings) {
      scores[posting.text] += idf * posting.count / (posting.count + penalties_[posting.text]);
    }
  });
  std::vector<Ranked> ranked;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    if (scores[i] > 0) ranked.push_back({i, scores[i]});
  }
  k = std::min(k, ranked.size());
  std::partial_sort(ranked.begin(), ranked.begin() + static_cast<std::ptrdiff_t>(k), ranked.end(),
                    [](const Ranked& a, const Ranked& b) {
                      return a.score != b.score ? a.score > b.score : a.index < b.index;
                    });
  ranked.resize(k);
  return ranked;
}

}  // namespace modicum::cag
