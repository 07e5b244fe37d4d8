// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace modicum::cag {

struct Bm25Options {
  double k1 = 1.2;  ///< how soon more of the same word counts no more; 0: at once
  double b = 0.75;  ///< how much a text's length counts against it, 0 to 1
};

struct Ranked {
  std::size_t index = 0;  ///< of the text
  double score = 0;       ///< above 0
};

/// Which of many texts a question is about, by the words that they share (BM25: Robertson and Zaragoza, The
/// Probabilistic Relevance Framework, 2009, equation 3.15):
///
///   score(text) = Σ_w idf(w) · tf / (tf + k1 · (1 − b + b · length / mean length))
///   idf(w)      = ln(1 + (N − n + 0.5) / (n + 0.5))
///
/// over the words w of the question, each as often as it stands there; N texts, n of them with the word, tf
/// times in this one. Words are runs of letters, digits and their marks, of any script, in NFC and lower
/// case; each Chinese or Japanese character is a word. Immutable: may be asked from several threads.
class Bm25 {
 public:
  /// Reads the texts and keeps none of them. What is not UTF-8 ends a word. Throws `InvalidArgument` for
  /// options out of range, and for 2^32 texts or more.
  explicit Bm25(std::span<const std::string_view> texts, const Bm25Options& options = {});

  /// The best `k` texts, best first and ties in their order, of those that share a word with the question.
  std::vector<Ranked> rank(std::string_view question, std::size_t k) const;

  /// Texts.
  std::size_t size() const noexcept { return penalties_.size(); }

 private:
  struct Posting {
    std::uint32_t text;
    std::uint32_t count;
  };
  struct WordHash {
    using is_transparent = void;
    std::size_t operator()(std::string_view word) const { return std::hash<std::string_view>()(word); }
  };

  std::unordered_map<std::string, std::uint32_t, WordHash, std::equal_to<>> words_;
  std::vector<std::size_t> begins_;  ///< of each word's postings, and their end
  std::vector<Posting> postings_;    ///< by word, then by text
  std::vector<double> penalties_;    ///< k1 · (1 − b + b · length / mean length) of each text
};

}  // namespace modicum::cag
