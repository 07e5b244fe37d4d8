// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include <modicum/base/error.hpp>
#include <modicum/search/all_of.hpp>

namespace modicum {
namespace {

using Kind = AllowedTokens::Kind;

/// What one part says in its state.
struct Verdict {
  const Constraint* constraint;
  Constraint::State state;
  AllowedScratch scratch = {};
  AllowedTokens allowed = {};
};

bool allow(const std::vector<Verdict>& verdicts, TokenId token) {
  return std::ranges::all_of(verdicts, [&](const Verdict& v) {
    return v.allowed.kind == Kind::check ? v.constraint->allows(v.state, token) : contains(v.allowed, token);
  });
}

void keep_allowed(const std::vector<Verdict>& verdicts, std::vector<TokenId>& tokens) {
  std::erase_if(tokens, [&](TokenId token) { return !allow(verdicts, token); });
}

/// Bits that every mask has and that the others allow.
void intersect(const std::vector<Verdict>& verdicts, std::vector<std::uint32_t>& mask) {
  for (std::size_t word = 0; word < mask.size(); ++word) {
    for (const Verdict& v : verdicts) {
      if (v.allowed.kind == Kind::mask) mask[word] &= word < v.allowed.mask.size() ? v.allowed.mask[word] : 0;
    }
    for (std::uint32_t bits = mask[word]; bits != 0; bits &= bits - 1) {
      const int bit = std::countr_zero(bits);
      if (!allow(verdicts, static_cast<TokenId>(word * 32) + bit)) mask[word] &= ~(1u << bit);
    }
  }
}

const Verdict* first(const std::vector<Verdict>& verdicts, Kind kind) {
  const auto found = std::ranges::find(verdicts, kind, [](const Verdict& v) { return v.allowed.kind; });
  return found == verdicts.end() ? nullptr : &*found;
}

}  // namespace

AllOf::AllOf(std::vector<std::shared_ptr<const Constraint>> parts) : parts_(std::move(parts)) {
  if (parts_.empty()) {
    fail({.op = "all_of", .what = "constraints", .expected = "at least one", .got = "none"});
  }
}

std::vector<Constraint::State> AllOf::states(State state) const {
  const std::lock_guard lock(mutex_);
  return states_.at(state);
}

Constraint::State AllOf::keep(std::vector<State> states) const {
  const std::lock_guard lock(mutex_);
  states_.emplace(next_, std::move(states));
  return next_++;
}

Constraint::State AllOf::root() const {
  std::vector<State> roots;
  for (const auto& part : parts_) roots.push_back(part->root());
  return keep(std::move(roots));
}

AllowedTokens AllOf::allowed(State state, AllowedScratch& scratch) const {
  const std::vector<State> each = states(state);
  std::vector<Verdict> verdicts(parts_.size());
  AllowedTokens result;
  scratch.wanted.clear();
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    Verdict& v = verdicts[i];
    v.constraint = parts_[i].get();
    v.state = each[i];
    v.allowed = v.constraint->allowed(v.state, v.scratch);
    result.may_end = result.may_end && v.allowed.may_end;
    scratch.wanted.insert(scratch.wanted.end(), v.allowed.wanted.begin(), v.allowed.wanted.end());
  }
  std::ranges::sort(scratch.wanted);
  scratch.wanted.erase(std::unique(scratch.wanted.begin(), scratch.wanted.end()), scratch.wanted.end());
  keep_allowed(verdicts, scratch.wanted);
  result.wanted = scratch.wanted;
  if (const Verdict* only = first(verdicts, Kind::only)) {
    scratch.tokens.assign(only->allowed.tokens.begin(), only->allowed.tokens.end());
    keep_allowed(verdicts, scratch.tokens);
    result.kind = Kind::only;
    result.tokens = scratch.tokens;
  } else if (const Verdict* mask = first(verdicts, Kind::mask)) {
    scratch.mask.assign(mask->allowed.mask.begin(), mask->allowed.mask.end());
    intersect(verdicts, scratch.mask);
    result.kind = Kind::mask;
    result.mask = scratch.mask;
  } else {
    result.kind = first(verdicts, Kind::check) != nullptr ? Kind::check : Kind::all;
  }
  return result;
}

Constraint::State AllOf::advance(State state, TokenId token) const {
  std::vector<State> each = states(state);
  for (std::size_t i = 0; i < parts_.size(); ++i) each[i] = parts_[i]->advance(each[i], token);
  return keep(std::move(each));
}

/// Asked only where no part lists its tokens.
bool AllOf::allows(State state, TokenId token) const {
  const std::vector<State> each = states(state);
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    if (!parts_[i]->allows(each[i], token)) return false;
  }
  return true;
}

Constraint::Ending AllOf::ending(State state) const {
  const std::vector<State> each = states(state);
  Ending all = Ending::may;
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    const Ending one = parts_[i]->ending(each[i]);
    if (one == Ending::no) return Ending::no;
    if (one == Ending::must) all = Ending::must;
  }
  return all;
}

bool AllOf::ends_by_itself() const {
  return std::ranges::any_of(parts_, [](const auto& part) { return part->ends_by_itself(); });
}

std::size_t AllOf::progress(State state) const {
  const std::vector<State> each = states(state);
  std::size_t sum = 0;
  for (std::size_t i = 0; i < parts_.size(); ++i) sum += parts_[i]->progress(each[i]);
  return sum;
}

std::size_t AllOf::required() const {
  std::size_t sum = 0;
  for (const auto& part : parts_) sum += part->required();
  return sum;
}

std::string_view AllOf::tokenizer_fingerprint() const {
  for (const auto& part : parts_) {
    if (!part->tokenizer_fingerprint().empty()) return part->tokenizer_fingerprint();
  }
  return {};
}

void AllOf::release(State state) const noexcept {
  const std::vector<State> each = states(state);
  for (std::size_t i = 0; i < parts_.size(); ++i) parts_[i]->release(each[i]);
  const std::lock_guard lock(mutex_);
  states_.erase(state);
}

}  // namespace modicum
