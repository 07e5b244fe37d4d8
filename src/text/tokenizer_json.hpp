// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "../base/json.hpp"
#include "bpe.hpp"
#include "vocabulary.hpp"

namespace modicum::text {

/// The merges of a file, in either spelling, behind one another.
class MergeTexts {
 public:
  void add(std::string_view left, std::string_view right);
  void clear();
  template <class Visit>
  void for_each(Visit visit) const {
    std::size_t at = 0;
    for (std::size_t i = 0; i + 1 < lengths_.size(); i += 2) {
      const std::string_view left = std::string_view(texts_).substr(at, lengths_[i]);
      const std::string_view right = std::string_view(texts_).substr(at + lengths_[i], lengths_[i + 1]);
      visit(left, right);
      at += left.size() + right.size();
    }
  }

 private:
  std::string texts_;
  std::vector<std::uint32_t> lengths_;
};

/// A tokenizer.json as read: vocabulary and merges, which are nearly all of it, without a tree of JSON
/// values.
struct TokenizerJson {
  Json rest;  ///< everything but model.vocab and model.merges
  bool has_vocabulary = false, has_merges = false;
  Vocabulary vocabulary;
  MergeTexts merges;
};

/// Throws `FormatError`.
TokenizerJson read_tokenizer_json(std::string_view text);

/// The model of a tokenizer.json. Throws `Unsupported` for any model but BPE, `FormatError` for a broken one.
Bpe build_bpe(TokenizerJson& file);

}  // namespace modicum::text
