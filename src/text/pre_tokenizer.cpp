// SPDX-License-Identifier: Apache-2.0
#include "pre_tokenizer.hpp"

#include <algorithm>
#include <array>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "component.hpp"
#include "unicode.hpp"

namespace modicum::text {
namespace {

/// What becomes of the matches of a pattern.
enum class Behavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };

using Finder = std::function<void(std::string_view, std::vector<Match>&)>;

/// Joins matches and gaps as `behavior` says. What is to go away keeps `matched`.
void join(std::vector<Match>& matches, Behavior behavior) {
  if (behavior == Behavior::removed) return;
  std::vector<Match> joined;
  const bool backwards = behavior == Behavior::merged_with_next;
  if (backwards) std::reverse(matches.begin(), matches.end());
  bool previous = false;
  for (const Match& match : matches) {
    const bool glue = behavior == Behavior::contiguous ? match.matched == previous
                      : behavior == Behavior::isolated ? false
                                                       : match.matched && !previous;
    if (glue && !joined.empty()) {
      (backwards ? joined.back().begin : joined.back().end) = backwards ? match.begin : match.end;
    } else {
      joined.push_back({match.begin, match.end, false});
    }
    previous = match.matched;
  }
  if (backwards) std::reverse(joined.begin(), joined.end());
  matches = std::move(joined);
}

template <class Cut>
void for_each_free(Pieces& pieces, Cut cut) {
  std::vector<Piece> old = std::exchange(pieces.list, {});
  pieces.list.reserve(old.size());
  for (const Piece& piece : old) {
    if (piece.added != Piece::kNone) {
      pieces.list.push_back(piece);
    } else {
      cut(piece);
    }
  }
}

void split(Pieces& pieces, const Finder& find, Behavior behavior) {
  std::vector<Match> matches;
  for_each_free(pieces, [&](const Piece& piece) {
    matches.clear();
    find(piece.text(), matches);
    if (behavior != Behavior::isolated) join(matches, behavior);
    for (const Match& match : matches) {
      if (match.begin == match.end || (behavior == Behavior::removed && match.matched)) continue;
      pieces.list.push_back({piece.source, piece.begin + static_cast<std::uint32_t>(match.begin),
                             piece.begin + static_cast<std::uint32_t>(match.end)});
    }
  });
}

/// Matches are the single code points for which `is` holds.
Finder code_points_that(bool (*is)(char32_t)) {
  return [is](std::string_view text, std::vector<Match>& out) {
    std::size_t gap = 0;
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t begin = at;
      if (!is(next_code_point(text, at))) continue;
      if (gap < begin) out.push_back({gap, begin, false});
      out.push_back({begin, at, true});
      gap = at;
    }
    if (gap < text.size()) out.push_back({gap, text.size(), false});
  };
}

bool is_white_space(char32_t c) {
  return has_flag(c, kWhiteSpace);
}
bool is_numeric(char32_t c) {
  return has_flag(c, kNumeric);
}
bool is_punctuation(char32_t c) {
  return has_flag(c, kPunctuation);
}

/// The parts of \w+|[^\w\s]+ are the gaps, so that white space is the match to be removed.
void find_word_gaps(std::string_view text, std::vector<Match>& out) {
  const auto kind = [](char32_t c) { return has_flag(c, kWord) ? 1 : has_flag(c, kWhiteSpace) ? 0 : 2; };
  int previous = -1;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t begin = at;
    const int own = kind(next_code_point(text, at));
    if (own == previous) {
      out.back().end = at;
    } else {
      out.push_back({begin, at, own == 0});
    }
    previous = own;
  }
}

class SplitStep : public PreTokenizer {
 public:
  SplitStep(Finder find, Behavior behavior) : find_(std::move(find)), behavior_(behavior) {}
  void apply(Pieces& pieces) const override { split(pieces, find_, behavior_); }

 private:
  Finder find_;
  Behavior behavior_;
};

class SequenceStep : public PreTokenizer {
 public:
  explicit SequenceStep(std::vector<std::unique_ptr<const PreTokenizer>> steps) : steps_(std::move(steps)) {}
  void apply(Pieces& pieces) const override {
    for (const auto& step : steps_) step->apply(pieces);
  }

 private:
  std::vector<std::unique_ptr<const PreTokenizer>> steps_;
};

/// A piece of its own text, with the steps that a rewriting pre-tokenizer begins with.
Piece rewritten(Pieces& pieces, const Piece& piece, const std::function<void(NormalizedText&)>& rewrite) {
  NormalizedText text = piece.source->slice(piece.begin, piece.end);
  rewrite(text);
  const NormalizedText* held = pieces.hold(std::move(text));
  return {held, 0, static_cast<std::uint32_t>(held->text().size())};
}

/// ByteLevel but for its last act, which `bytes_to_letters` does.
class ByteLevelStep : public PreTokenizer {
 public:
  ByteLevelStep(bool add_prefix_space, bool use_regex) : add_prefix_space_(add_prefix_space) {
    if (use_regex) {
      pattern_ =
          Pattern::regex(R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)");
    }
  }
  void apply(Pieces& pieces) const override {
    if (add_prefix_space_) {
      for_each_free(pieces, [&](const Piece& piece) {
        const bool spaced = piece.text().starts_with(' ');
        pieces.list.push_back(
            spaced ? piece : rewritten(pieces, piece, [](NormalizedText& text) { text.prepend(" "); }));
      });
    }
    if (pattern_) {
      split(
          pieces, [&](std::string_view text, std::vector<Match>& out) { pattern_->find(text, out); },
          Behavior::isolated);
    }
  }

 private:
  bool add_prefix_space_;
  std::optional<Pattern> pattern_;
};

class LettersStep : public PreTokenizer {
 public:
  void apply(Pieces& pieces) const override { bytes_to_letters(pieces); }
};

enum class PrependScheme { first, never, always };

class MetaspaceStep : public PreTokenizer {
 public:
  MetaspaceStep(std::string replacement, PrependScheme scheme, bool splits)
      : replacement_(std::move(replacement)),
        space_(Pattern::literal(" ")),
        mark_(Pattern::literal(replacement_)),
        scheme_(scheme),
        splits_(splits) {}

  void apply(Pieces& pieces) const override {
    for_each_free(pieces, [&](const Piece& piece) {
      pieces.list.push_back(rewritten(pieces, piece, [&](NormalizedText& text) {
        const bool at_start = text.span(0).begin == 0;
        replace(text, space_, replacement_);
        const bool wanted = scheme_ == PrependScheme::always || (scheme_ == PrependScheme::first && at_start);
        if (wanted && !text.text().starts_with(replacement_)) text.prepend(replacement_);
      }));
    });
    if (splits_) {
      split(
          pieces, [&](std::string_view text, std::vector<Match>& out) { mark_.find(text, out); },
          Behavior::merged_with_next);
    }
  }

 private:
  std::string replacement_;
  Pattern space_, mark_;
  PrependScheme scheme_;
  bool splits_;
};

Behavior parse_behavior(const Component& part) {
  const std::string name = part.fields().text("behavior");
  if (name == "Removed") return Behavior::removed;
  if (name == "Isolated") return Behavior::isolated;
  if (name == "MergedWithPrevious") return Behavior::merged_with_previous;
  if (name == "MergedWithNext") return Behavior::merged_with_next;
  if (name == "Contiguous") return Behavior::contiguous;
  part.fields().refuse("behavior", "Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous");
}

std::unique_ptr<const PreTokenizer> parse_split(const Component& part) {
  const bool invert = part.flag("invert");
  Finder find = [pattern = part.pattern(), invert](std::string_view text, std::vector<Match>& out) {
    pattern.find(text, out);
    if (invert) {
      for (Match& match : out) match.matched = !match.matched;
    }
  };
  return std::make_unique<SplitStep>(std::move(find), parse_behavior(part));
}

std::unique_ptr<const PreTokenizer> parse_metaspace(const Component& part) {
  const JsonFields& fields = part.fields();
  const std::string name = fields.text_or("prepend_scheme", "always");
  PrependScheme scheme = PrependScheme::always;
  if (name == "first") {
    scheme = PrependScheme::first;
  } else if (name == "never") {
    scheme = PrependScheme::never;
  } else if (name != "always") {
    fields.refuse("prepend_scheme", "first, never or always");
  }
  if (fields.has_value("add_prefix_space") && !fields.boolean_or("add_prefix_space", true) &&
      scheme != PrependScheme::never) {
    fields.refuse("add_prefix_space", "a value that agrees with prepend_scheme");
  }
  const bool splits = !fields.has_value("split") || fields.boolean_or("split", true);
  return std::make_unique<MetaspaceStep>(part.character("replacement"), scheme, splits);
}

using Steps = std::vector<std::unique_ptr<const PreTokenizer>>;

void parse(const Json& json, int depth, Steps& steps) {
  const Component part(json, "pre_tokenizer", depth);
  const std::string& type = part.type();
  if (type == "Sequence") {
    for (const Json& step : part.list("pretokenizers")) parse(step, depth + 1, steps);
  } else if (type == "ByteLevel") {
    steps.push_back(std::make_unique<ByteLevelStep>(part.flag("add_prefix_space"),
                                                    part.fields().boolean_or("use_regex", true)));
    steps.push_back(std::make_unique<LettersStep>());
  } else if (type == "Split") {
    steps.push_back(parse_split(part));
  } else if (type == "Metaspace") {
    steps.push_back(parse_metaspace(part));
  } else if (type == "Digits") {
    const Behavior behavior = part.flag("individual_digits") ? Behavior::isolated : Behavior::contiguous;
    steps.push_back(std::make_unique<SplitStep>(code_points_that(is_numeric), behavior));
  } else if (type == "Whitespace") {
    steps.push_back(std::make_unique<SplitStep>(find_word_gaps, Behavior::removed));
  } else if (type == "WhitespaceSplit") {
    steps.push_back(std::make_unique<SplitStep>(code_points_that(is_white_space), Behavior::removed));
  } else if (type == "Punctuation") {
    const Behavior behavior = part.fields().has("behavior") ? parse_behavior(part) : Behavior::isolated;
    steps.push_back(std::make_unique<SplitStep>(code_points_that(is_punctuation), behavior));
  } else if (type == "BertPreTokenizer") {
    steps.push_back(std::make_unique<SplitStep>(code_points_that(is_white_space), Behavior::removed));
    steps.push_back(std::make_unique<SplitStep>(code_points_that(is_punctuation), Behavior::isolated));
  } else {
    part.unsupported();
  }
}

/// GPT-2's table: printable letters stand for themselves, all other bytes for what comes from U+0100 on.
std::array<char32_t, 256> make_letters() {
  std::array<char32_t, 256> letters{};
  char32_t next = 0x100;
  for (int b = 0; b < 256; ++b) {
    const bool printable = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
    letters[static_cast<std::size_t>(b)] = printable ? static_cast<char32_t>(b) : next++;
  }
  return letters;
}

}  // namespace

char32_t letter_of_byte(unsigned char byte) {
  static const std::array<char32_t, 256> letters = make_letters();
  return letters[byte];
}

int byte_of_letter(char32_t letter) {
  static const auto bytes = [] {
    std::array<std::int16_t, 0x180> table{};
    table.fill(-1);
    for (int b = 0; b < 256; ++b)
      table[letter_of_byte(static_cast<unsigned char>(b))] = static_cast<std::int16_t>(b);
    return table;
  }();
  return letter < bytes.size() ? bytes[letter] : -1;
}

void bytes_to_letters(Pieces& pieces) {
  for_each_free(pieces, [&](const Piece& piece) {
    pieces.list.push_back(rewritten(pieces, piece, [](NormalizedText& text) {
      std::string letters;
      std::vector<Span> spans;
      const std::string_view old = text.text();
      for (std::size_t at = 0; at < old.size(); ++at) {
        append_utf8(letters, letter_of_byte(static_cast<unsigned char>(old[at])));
        spans.resize(letters.size(), text.span(at));
      }
      text.rewrite(std::move(letters), std::move(spans));
    }));
  });
}

PreTokenizerPlan parse_pre_tokenizer(const Json& json) {
  PreTokenizerPlan plan;
  if (json.is_null()) return plan;
  Steps steps;
  parse(json, 0, steps);
  if (!steps.empty() && dynamic_cast<const LettersStep*>(steps.back().get()) != nullptr) {
    plan.ends_in_bytes = true;
    steps.pop_back();
  }
  if (!steps.empty()) plan.steps = std::make_unique<SequenceStep>(std::move(steps));
  return plan;
}

}  // namespace modicum::text
