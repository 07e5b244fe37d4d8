// SPDX-License-Identifier: Apache-2.0
#include "decoder.hpp"

#include <optional>
#include <utility>

#include "component.hpp"
#include "unicode.hpp"

namespace modicum::text {
namespace {

/// A stage that needs whole tokens.
class TokenStage : public DecodeSink {
 public:
  explicit TokenStage(DecodeSink& next) : next_(next) {}
  void text(std::string_view part) override { token_ += part; }
  void end_token() override { token(std::exchange(token_, {})); }
  void finish() override { next_.finish(); }

 protected:
  virtual void token(std::string token) = 0;
  void pass(std::string_view text) {
    next_.text(text);
    next_.end_token();
  }
  DecodeSink& next_;

 private:
  std::string token_;
};

/// Letters that stand for bytes become those bytes, and all tokens one text.
class BytesStage : public TokenStage {
 public:
  using TokenStage::TokenStage;
  void finish() override {
    if (!bytes_.empty()) next_.text(kReplacement);
    next_.end_token();
    next_.finish();
  }

 protected:
  void token(std::string token) override {
    const std::size_t before = bytes_.size();
    for (std::size_t at = 0; at < token.size();) {
      const int byte = byte_of_letter(next_code_point(token, at));
      if (byte < 0) {
        // A token that holds anything else stands for itself.
        bytes_.replace(before, std::string::npos, token);
        break;
      }
      bytes_ += static_cast<char>(byte);
    }
    std::string text;
    const std::size_t open = append_lossy(text, bytes_);
    bytes_.erase(0, bytes_.size() - open);
    if (!text.empty()) next_.text(text);
  }

 private:
  std::string bytes_;  ///< the beginning of a character
};

class FuseStage : public DecodeSink {
 public:
  explicit FuseStage(DecodeSink& next) : next_(next) {}
  void text(std::string_view part) override { next_.text(part); }
  void end_token() override {}
  void finish() override {
    next_.end_token();
    next_.finish();
  }

 private:
  DecodeSink& next_;
};

/// The byte that a token like <0x0A> stands for.
std::optional<char> fallback_byte(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || !token.ends_with('>')) return std::nullopt;
  const auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    const int letter = (c | 0x20) - 'a';
    return letter >= 0 && letter < 6 ? letter + 10 : -1;
  };
  // Rust's parser, which the original uses, takes a sign.
  const int high = token[3] == '+' ? 0 : digit(token[3]), low = digit(token[4]);
  if (high < 0 || low < 0) return std::nullopt;
  return static_cast<char>(high * 16 + low);
}

/// Runs of byte tokens become text if the whole run is UTF-8, otherwise a U+FFFD for each byte; so a run can
/// only be passed on when it ends.
class ByteFallbackStage : public TokenStage {
 public:
  using TokenStage::TokenStage;
  void finish() override {
    flush();
    next_.finish();
  }

 protected:
  void token(std::string token) override {
    if (const auto byte = fallback_byte(token)) {
      run_ += *byte;
      return;
    }
    flush();
    pass(token);
  }

 private:
  void flush() {
    const std::string run = std::exchange(run_, {});
    if (run.empty()) return;
    if (find_invalid_utf8(run) == std::string_view::npos) {
      pass(run);
      return;
    }
    for (std::size_t i = 0; i < run.size(); ++i) pass(kReplacement);
  }

  std::string run_;
};

class ReplaceStage : public TokenStage {
 public:
  ReplaceStage(DecodeSink& next, const Pattern& pattern, const std::string& content)
      : TokenStage(next), pattern_(pattern), content_(content) {}

 protected:
  void token(std::string token) override {
    std::string result;
    pattern_.find(token, matches_);
    for (const Match& match : matches_) {
      result += match.matched ? std::string_view(content_)
                              : std::string_view(token).substr(match.begin, match.end - match.begin);
    }
    pass(result);
  }

 private:
  const Pattern& pattern_;
  const std::string& content_;
  std::vector<Match> matches_;
};

/// Takes up to `start` copies of `content` off the front of each token and up to `stop` off its end.
class StripStage : public DecodeSink {
 public:
  StripStage(DecodeSink& next, std::string content, std::size_t start, std::size_t stop)
      : next_(next), content_(std::move(content)), start_(start), stop_(stop) {}

  void text(std::string_view part) override {
    held_ += part;
    std::size_t front = 0;
    for (; at_front_ < start_ && std::string_view(held_).substr(front).starts_with(content_); ++at_front_) {
      front += content_.size();
    }
    held_.erase(0, front);
    if (!held_.empty()) at_front_ = start_;
    // Copies at the end may yet have to go.
    std::size_t kept = held_.size();
    for (std::size_t i = 0; i < stop_ && ends_in_content(kept); ++i) kept -= content_.size();
    if (kept > 0) next_.text(std::string_view(held_).substr(0, kept));
    held_.erase(0, kept);
  }
  void end_token() override {
    held_.clear();
    at_front_ = 0;
    next_.end_token();
  }
  void finish() override { next_.finish(); }

 private:
  bool ends_in_content(std::size_t end) const {
    return std::string_view(held_).substr(0, end).ends_with(content_);
  }

  DecodeSink& next_;
  std::string content_;
  std::size_t start_, stop_;
  std::size_t at_front_ = 0;  ///< copies taken off so far
  std::string held_;          ///< copies of `content_` at the end
};

class MetaspaceStage : public TokenStage {
 public:
  MetaspaceStage(DecodeSink& next, const Pattern& mark, bool drops_first)
      : TokenStage(next), mark_(mark), drops_(drops_first) {}

 protected:
  void token(std::string token) override {
    std::string result;
    mark_.find(token, matches_);
    for (const Match& match : matches_) {
      if (!match.matched) {
        result += std::string_view(token).substr(match.begin, match.end - match.begin);
      } else if (!drops_) {
        result += ' ';
      }
    }
    drops_ = false;
    pass(result);
  }

 private:
  const Pattern& mark_;
  bool drops_;
  std::vector<Match> matches_;
};

/// The suffix that ends a word becomes a space, but at the end of the text nothing.
class SuffixStage : public TokenStage {
 public:
  SuffixStage(DecodeSink& next, const Pattern& suffix) : TokenStage(next), suffix_(suffix) {}
  void finish() override {
    if (held_) pass(replaced(*held_, ""));
    next_.finish();
  }

 protected:
  void token(std::string token) override {
    if (held_) pass(replaced(*held_, " "));
    held_ = std::move(token);
  }

 private:
  std::string replaced(std::string_view token, std::string_view content) {
    std::string result;
    suffix_.find(token, matches_);
    for (const Match& match : matches_) {
      result += match.matched ? content : token.substr(match.begin, match.end - match.begin);
    }
    return result;
  }

  const Pattern& suffix_;
  std::optional<std::string> held_;
  std::vector<Match> matches_;
};

class JoinStage : public TokenStage {
 public:
  using TokenStage::TokenStage;

 protected:
  void token(std::string token) override {
    if (!std::exchange(first_, false)) next_.text(" ");
    pass(token);
  }

 private:
  bool first_ = true;
};

/// A decoder whose stage is made by `Make` from what was read from the file.
template <class Make>
class DecoderOf : public Decoder {
 public:
  explicit DecoderOf(Make make) : make_(std::move(make)) {}
  std::unique_ptr<DecodeSink> start(DecodeSink& next) const override { return make_(next); }

 private:
  Make make_;
};

template <class Make>
std::unique_ptr<const Decoder> decoder(Make make) {
  return std::make_unique<DecoderOf<Make>>(std::move(make));
}

template <class Stage>
std::unique_ptr<const Decoder> plain() {
  return decoder([](DecodeSink& next) { return std::make_unique<Stage>(next); });
}

std::unique_ptr<const Decoder> parse_metaspace(const Component& part) {
  const JsonFields& fields = part.fields();
  std::string scheme = fields.text_or("prepend_scheme", "always");
  if (scheme != "always" && scheme != "never" && scheme != "first") {
    fields.refuse("prepend_scheme", "first, never or always");
  }
  if (fields.has_value("add_prefix_space") && !fields.boolean_or("add_prefix_space", true) &&
      scheme != "never") {
    fields.refuse("add_prefix_space", "a value that agrees with prepend_scheme");
  }
  return decoder([mark = Pattern::literal(part.character("replacement")), drops = scheme != "never"](
                     DecodeSink& next) { return std::make_unique<MetaspaceStage>(next, mark, drops); });
}

void parse(const Json& json, int depth, DecoderChain& chain) {
  const Component part(json, "decoder", depth);
  const JsonFields& fields = part.fields();
  const std::string& type = part.type();
  constexpr std::uint64_t kMost = 1 << 12;  // bounds the work for each token
  if (type == "Sequence") {
    for (const Json& step : part.list("decoders")) parse(step, depth + 1, chain);
  } else if (type == "ByteLevel") {
    chain.push_back(plain<BytesStage>());
  } else if (type == "ByteFallback") {
    chain.push_back(plain<ByteFallbackStage>());
  } else if (type == "Fuse") {
    chain.push_back(plain<FuseStage>());
  } else if (type == "Metaspace") {
    chain.push_back(parse_metaspace(part));
  } else if (type == "Replace") {
    chain.push_back(decoder([pattern = part.pattern(), content = fields.text("content")](DecodeSink& next) {
      return std::make_unique<ReplaceStage>(next, pattern, content);
    }));
  } else if (type == "Strip") {
    chain.push_back(decoder([content = part.character("content"), start = fields.integer("start", 0, kMost),
                             stop = fields.integer("stop", 0, kMost)](DecodeSink& next) {
      return std::make_unique<StripStage>(next, content, start, stop);
    }));
  } else if (type == "BPEDecoder") {
    if (fields.text("suffix").empty()) fields.refuse<Unsupported>("suffix", "at least one character");
    chain.push_back(decoder([suffix = Pattern::literal(fields.text("suffix"))](DecodeSink& next) {
      return std::make_unique<SuffixStage>(next, suffix);
    }));
  } else {
    part.unsupported();
  }
}

}  // namespace

DecoderChain parse_decoder(const Json& json) {
  DecoderChain chain;
  if (json.is_null()) {
    chain.push_back(plain<JoinStage>());
  } else {
    parse(json, 0, chain);
  }
  return chain;
}

Decoding::Decoding(const DecoderChain& chain) {
  for (auto decoder = chain.rbegin(); decoder != chain.rend(); ++decoder)
    stages_.push_back((*decoder)->start(first()));
}

std::string token_bytes(const DecoderChain& chain, std::string_view token) {
  if (const auto byte = fallback_byte(token)) return std::string(1, *byte);
  Decoding decoding(chain);
  decoding.push("a");  // what a decoder does to the beginning of a text is done to this
  const std::size_t before = decoding.take().size();
  decoding.push(token);
  std::string text = decoding.take();
  decoding.finish();
  text += decoding.take();
  text.erase(0, 1 - before);
  if (text.find(kReplacement) == std::string::npos) return text;
  std::string bytes;  // part of a character, written in letters that stand for bytes
  for (std::size_t at = 0; at < token.size();) {
    const int byte = byte_of_letter(next_code_point(token, at));
    if (byte < 0) return text;
    bytes += static_cast<char>(byte);
  }
  return bytes;
}

}  // namespace modicum::text
