// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <limits>
#include <utility>

#include <modicum/base/error.hpp>

#include "../base/quote.hpp"
#include "lexicon_data.hpp"

namespace modicum {
namespace {

constexpr std::string_view kOp = "lexicon.build";
constexpr std::size_t kMost = std::numeric_limits<std::uint32_t>::max();
constexpr std::size_t kTextsATask = 64;  // enough that handing out a task costs nothing beside it

/// Entries end to end.
struct Entries {
  std::vector<TokenId> tokens;
  std::vector<std::uint64_t> ends;

  std::size_t size() const { return ends.size(); }
  std::span<const TokenId> operator[](std::size_t i) const {
    const std::uint64_t begin = i == 0 ? 0 : ends[i - 1];
    return std::span(tokens).subspan(begin, ends[i] - begin);
  }
};

/// An entry to sort: its first two tokens, which tell most entries apart without a look at memory elsewhere.
struct Keyed {
  std::uint64_t key;
  std::uint32_t position;
};

std::uint64_t key_of(std::span<const TokenId> entry) {
  const auto second = entry.size() > 1 ? static_cast<std::uint64_t>(entry[1]) + 1 : 0;  // none sorts first
  return static_cast<std::uint64_t>(entry[0]) << 32 | second;
}

/// Positions of the entries, by their tokens, equal ones by position.
std::vector<std::uint32_t> sorted_positions(const Entries& entries, const Progress& progress) {
  std::vector<Keyed> order(entries.size());
  for (std::size_t i = 0; i < order.size(); ++i) {
    order[i] = {key_of(entries[i]), static_cast<std::uint32_t>(i)};
  }
  std::uint64_t comparisons = 0;
  std::ranges::sort(order, [&](const Keyed& a, const Keyed& b) {
    if (++comparisons % (std::uint64_t{1} << 20) == 0) report(progress, "sort", 0, order.size());
    if (a.key != b.key) return a.key < b.key;
    const auto tokens_a = entries[a.position], tokens_b = entries[b.position];
    const auto differ = std::lexicographical_compare_three_way(tokens_a.begin(), tokens_a.end(),
                                                               tokens_b.begin(), tokens_b.end());
    return differ != 0 ? differ < 0 : a.position < b.position;
  });
  report(progress, "sort", order.size(), order.size());
  std::vector<std::uint32_t> positions(order.size());
  std::ranges::transform(order, positions.begin(), &Keyed::position);
  return positions;
}

/// Copied into their order, so that the walk over a level goes through memory once.
Entries permuted(const Entries& entries, std::span<const std::uint32_t> positions) {
  Entries sorted;
  sorted.tokens.reserve(entries.tokens.size());
  sorted.ends.reserve(entries.ends.size());
  for (const std::uint32_t position : positions) {
    const auto entry = entries[position];
    sorted.tokens.insert(sorted.tokens.end(), entry.begin(), entry.end());
    sorted.ends.push_back(sorted.tokens.size());
  }
  return sorted;
}

/// Makes the arrays from sorted entries, a level after the other: a node is the range of entries that begin
/// with its tokens.
class LevelOrder {
 public:
  LevelOrder(const Entries& sorted, std::span<const std::uint32_t> positions, const Progress& progress)
      : sorted_(sorted), positions_(positions), progress_(progress) {
    out_.positions.reserve(positions.size());
  }

  LexiconVectors run() && {
    level_ = {{0, static_cast<std::uint32_t>(sorted_.size())}};
    for (std::size_t depth = 0; !level_.empty(); ++depth) {
      for (const Range& range : level_) add_node(range, depth);
      level_ = std::exchange(next_, {});
    }
    out_.first.push_back(static_cast<std::uint32_t>(out_.tokens.size()));
    if (out_.positions.size() == out_.begins.size()) {
      out_.begins = {};
    } else {
      out_.begins.push_back(static_cast<std::uint32_t>(out_.positions.size()));
    }
    return std::move(out_);
  }

 private:
  struct Range {
    std::uint32_t begin, end;
  };

  void add_node(const Range& range, std::size_t depth) {
    const std::size_t node = out_.first.size();
    out_.first.push_back(static_cast<std::uint32_t>(out_.tokens.size()));
    if (node % 64 == 0) out_.ends.push_back(0);
    std::uint32_t i = range.begin;
    if (sorted_[i].size() == depth) {
      out_.ends.back() |= std::uint64_t{1} << (node % 64);
      out_.begins.push_back(static_cast<std::uint32_t>(out_.positions.size()));
      while (i < range.end && sorted_[i].size() == depth) out_.positions.push_back(positions_[i++]);
    }
    while (i < range.end) i = add_child(i, range.end, depth);
    if (node % (std::size_t{1} << 18) == 0) {
      report(progress_, "build", out_.positions.size(), positions_.size());
    }
  }

  /// The child of the entries from `begin` on that share their next token; where the others begin.
  std::uint32_t add_child(std::uint32_t begin, std::uint32_t end, std::size_t depth) {
    const TokenId token = sorted_[begin][depth];
    std::uint32_t i = begin + 1;
    while (i < end && sorted_[i][depth] == token) ++i;
    if (out_.tokens.size() + 2 > kMost) {
      fail<Unsupported>({.op = kOp,
                         .what = "entries",
                         .expected = "at most " + std::to_string(kMost) + " different beginnings",
                         .got = "more",
                         .todo = "split the lexicon"});
    }
    out_.tokens.push_back(token);
    next_.push_back({begin, i});
    return i;
  }

  const Entries& sorted_;
  std::span<const std::uint32_t> positions_;
  const Progress& progress_;
  std::vector<Range> level_, next_;
  LexiconVectors out_;
};

void check_special(const Tokenizer& tokenizer, std::span<const TokenId> ids) {
  const auto special = std::ranges::find_if(ids, [&](TokenId id) { return tokenizer.is_special(id); });
  if (special == ids.end()) return;
  fail({.op = kOp,
        .what = "text",
        .expected = "no special tokens",
        .got = quote(tokenizer.token_of(*special).value_or("")),
        .todo = "leave it out, or add the entry as token ids"});
}

}  // namespace

LexiconBuilder::LexiconBuilder(Tokenizer tokenizer, std::string prefix)
    : tokenizer_(std::move(tokenizer)), prefix_(std::move(prefix)) {
  check_special(*tokenizer_, tokenizer_->encode(prefix_, AddSpecial::no).ids);
}

void LexiconBuilder::add(std::span<const TokenId> entry) {
  const std::string name = "entry " + std::to_string(size());
  if (entry.empty()) fail({.op = kOp, .what = name, .expected = "at least one token", .got = "none"});
  if (const TokenId least = std::ranges::min(entry); least < 0) {
    fail({.op = kOp, .what = name, .expected = "token ids from 0 on", .got = std::to_string(least)});
  }
  if (size() == kMost) {
    fail<Unsupported>(
        {.op = kOp, .what = "entries", .expected = "at most " + std::to_string(kMost), .got = "more"});
  }
  tokens_.insert(tokens_.end(), entry.begin(), entry.end());
  ends_.push_back(tokens_.size());
}

void LexiconBuilder::add(std::span<const std::string> texts, ThreadPool& pool) {
  if (!tokenizer_) {
    fail({.op = kOp, .what = "texts", .expected = "a builder with a tokenizer", .got = "one without"});
  }
  std::vector<std::vector<TokenId>> encoded(texts.size());
  pool.run((texts.size() + kTextsATask - 1) / kTextsATask, [&](std::size_t task) {
    const std::size_t end = std::min(texts.size(), (task + 1) * kTextsATask);
    for (std::size_t i = task * kTextsATask; i < end; ++i) {
      try {
        encoded[i] = tokenizer_->encode(prefix_ + texts[i], AddSpecial::no).ids;
        check_special(*tokenizer_, encoded[i]);
      } catch (const InvalidArgument& e) {
        fail({.op = kOp, .what = "text " + std::to_string(size() + i) + ": " + e.what()});
      }
    }
  });
  const std::size_t tokens_before = tokens_.size(), ends_before = ends_.size();
  try {
    for (const auto& ids : encoded) add(ids);
  } catch (...) {
    tokens_.resize(tokens_before);
    ends_.resize(ends_before);
    throw;
  }
}

Lexicon LexiconBuilder::finish(const Progress& progress) && {
  if (size() == 0) fail({.op = kOp, .what = "entries", .expected = "at least one", .got = "none"});
  Entries entries{std::move(tokens_), std::move(ends_)};
  const std::vector<std::uint32_t> positions = sorted_positions(entries, progress);
  entries = permuted(entries, positions);
  auto vectors = std::make_shared<LexiconVectors>(LevelOrder(entries, positions, progress).run());
  const LexiconArrays arrays = vectors->view();
  return Lexicon(std::make_shared<const Lexicon::Data>(arrays, tokenizer_ ? tokenizer_->fingerprint() : "",
                                                       std::move(prefix_), std::move(vectors)));
}

Lexicon Lexicon::build(std::span<const std::vector<TokenId>> entries, const Progress& progress) {
  LexiconBuilder builder;
  for (const auto& entry : entries) builder.add(entry);
  return std::move(builder).finish(progress);
}

}  // namespace modicum
