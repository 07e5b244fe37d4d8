// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <modicum/base/error.hpp>
#include <modicum/text/tokenizer.hpp>

namespace modicum {

/// Lets text through up to the first stop string, and holds back an end that may yet become one.
class StopStrings {
 public:
  /// Throws `InvalidArgument` for an empty stop string.
  explicit StopStrings(std::vector<std::string> stops) : stops_(std::move(stops)) {
    if (std::ranges::any_of(stops_, &std::string::empty)) {
      fail({.op = "generate", .what = "stop strings", .expected = "text", .got = "an empty string"});
    }
  }

  /// The text that became certain with `piece`. After a stop string was found, always empty.
  std::string push(std::string_view piece) {
    if (found_) {
      return {};
    }
    held_ += piece;
    std::size_t begin = std::string::npos;
    for (const std::string& stop : stops_) {
      begin = std::min(begin, held_.find(stop));
    }
    found_ = begin != std::string::npos;
    return release(found_ ? begin : held_.size() - unfinished());
  }

  /// What was held back, when nothing more follows.
  std::string finish() { return found_ ? std::string{} : release(held_.size()); }

  bool found() const noexcept { return found_; }

 private:
  /// The bytes at the end that begin a stop string.
  std::size_t unfinished() const {
    std::size_t longest = 0;
    for (const std::string& stop : stops_) {
      for (std::size_t n = std::min(stop.size() - 1, held_.size()); n > longest; --n) {
        if (std::string_view(held_).substr(held_.size() - n) == std::string_view(stop).substr(0, n)) {
          longest = n;
        }
      }
    }
    return longest;
  }

  std::string release(std::size_t bytes) {
    std::string text = held_.substr(0, bytes);
    held_.erase(0, bytes);
    return text;
  }

  std::vector<std::string> stops_;
  std::string held_;
  bool found_ = false;
};

/// The text of a growing answer: whole characters, without special tokens, up to a stop string. Without a
/// tokenizer there is no text, and every piece is empty.
class TextStream {
 public:
  /// `tokenizer` may be null, then `stops` must be empty; throws `InvalidArgument` otherwise.
  TextStream(const Tokenizer* tokenizer, std::vector<std::string> stops) : stops_(checked(tokenizer, stops)) {
    if (tokenizer != nullptr) {
      decoder_.emplace(*tokenizer);
    }
  }

  /// The text that became certain with this token, possibly empty.
  std::string push(TokenId token) { return decoder_ ? stops_.push(decoder_->push(token)) : std::string{}; }

  /// The rest, when no token follows.
  std::string finish() {
    if (!decoder_) {
      return {};
    }
    std::string rest = stops_.push(decoder_->finish());
    return rest += stops_.finish();
  }

  /// Whether a stop string has ended the text.
  bool stopped() const noexcept { return stops_.found(); }

 private:
  static std::vector<std::string> checked(const Tokenizer* tokenizer, std::vector<std::string>& stops) {
    if (tokenizer == nullptr && !stops.empty()) {
      fail({.op = "generate", .what = "stop strings", .expected = "a tokenizer with them", .got = "none"});
    }
    return std::move(stops);
  }

  StopStrings stops_;
  std::optional<StreamDecoder> decoder_;
};

}  // namespace modicum
