// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include <modicum/base/error.hpp>
#include <modicum/search/beam_group.hpp>

namespace modicum::detail {
namespace {

bool is_real(float score) {
  return score > kImpossibleScore / 2;
}

}  // namespace

BeamGroup::BeamGroup(const BeamOptions& options, const BeamHooks& hooks, std::span<const TokenId> prompt,
                     std::size_t vocabulary, std::size_t width, std::size_t start_row, std::uint64_t seed)
    : options_(options),
      hooks_(hooks),
      prompt_(prompt),
      vocabulary_(vocabulary),
      width_(width),
      processors_(options, vocabulary),
      random_(seed),
      sequence_(prompt.begin(), prompt.end()) {
  // All beams begin as one, on one row of logits: only the first may be chosen from while it offers enough.
  const std::size_t first = is_exact() ? width : 1;
  for (std::size_t i = 0; i < first; ++i) {
    ConstraintState state;
    if (hooks.constraint != nullptr) state = {hooks.constraint, hooks.constraint->root()};
    beams_.push_back({SearchTree::kRoot, i == 0 ? 0.0f : kImpossibleScore, start_row, std::move(state)});
  }
}

void BeamGroup::select(SearchTree& tree, std::uint32_t first_new, std::span<const float> logits,
                       std::span<const float> penalties) {
  const Step step{tree, first_new, logits, penalties};
  std::vector<Candidate> found = candidates(step);
  finish(step, found);
  ++length_;
  const bool all_end = std::ranges::all_of(found, [](const Candidate& c) { return !c.goes_on; });
  keep_running(step, found);
  note_chosen(step, found);
  if (!is_exact()) prune();
  done_ = is_over(all_end);
  if (done_) beams_.clear();
}

bool BeamGroup::narrow() {
  if (beams_.size() < 2) return false;
  beams_.pop_back();
  width_ = beams_.size();
  return true;
}

bool BeamGroup::is_stop(TokenId token) const {
  return std::ranges::find(options_.stop_ids, token) != options_.stop_ids.end();
}

/// Makes `row_` the scores of the beam's next token. A row may serve several beams, so processors get a copy.
void BeamGroup::read_row(const Step& step, const Beam& beam) {
  const auto row = step.logits.subspan(beam.row * vocabulary_, vocabulary_);
  const bool are_logits = options_.scores == ModelScores::logits;
  const bool changes = processors_.act_on(length_) || !step.penalties.empty() || is_sampling();
  if (!changes) {
    if (are_logits && !is_single()) {
      row_.read_logits(row);
    } else {
      row_.read_log_probabilities(row);
    }
    return;
  }
  copy_.assign(row.begin(), row.end());
  if (are_logits && !is_single()) log_softmax(copy_);
  sequence_.resize(prompt_.size());
  step.tree.append_path(beam.node, sequence_);
  processors_.apply(copy_, sequence_, length_, step.penalties);
  if (is_sampling()) {
    warp(copy_, options_.sampling, is_single() ? 1 : options_.stop_ids.size() + 1);
  }
  row_.read_log_probabilities(copy_);
}

/// As many as leave a full set of beams even if every beam's stop tokens rank first.
std::vector<BeamGroup::Candidate> BeamGroup::candidates(const Step& step) {
  const std::size_t most = is_single() ? 1 : std::max<std::size_t>(2, 1 + options_.stop_ids.size()) * width_;
  BestContinuations best(most, is_sampling() ? &random_ : nullptr);
  std::vector<Continuation> wanted;
  for (std::size_t i = 0; i < beams_.size(); ++i) {
    read_row(step, beams_[i]);
    offer(i, is_single() ? 0.0f : beams_[i].score, best, wanted);
  }
  std::vector<Continuation> found = best.take();
  for (const Continuation& w : wanted) {
    const auto same = [&](const Continuation& c) { return c.beam == w.beam && c.token == w.token; };
    if (std::ranges::none_of(found, same)) found.push_back(w);
  }
  std::vector<Candidate> result;
  result.reserve(found.size());
  for (Continuation& c : found) {
    if (is_single()) score_single(step, c);
    const auto end = end_of(step, c);
    result.push_back({.continuation = c, .end = end, .goes_on = !end});
  }
  return result;
}

void BeamGroup::offer(std::size_t beam, float score, BestContinuations& best,
                      std::vector<Continuation>& wanted) {
  const Constraint* constraint = hooks_.constraint;
  if (constraint == nullptr) {
    best.add_all(beam, score, row_);
    return;
  }
  const Constraint::State state = beams_[beam].state.get();
  const AllowedTokens allowed = constraint->allowed(state, scratch_);
  const auto any = [](TokenId) { return true; };
  switch (allowed.kind) {
    case AllowedTokens::Kind::all:
      best.add_all(beam, score, row_, [&](TokenId t) { return allowed.may_end || !is_stop(t); });
      break;
    case AllowedTokens::Kind::check:
      best.add_all(beam, score, row_,
                   [&](TokenId t) { return is_stop(t) ? allowed.may_end : constraint->allows(state, t); });
      break;
    case AllowedTokens::Kind::only:
      for (const TokenId token : allowed.tokens) best.add(beam, score, row_, checked(token), any);
      offer_stops(beam, score, allowed, best);
      break;
    case AllowedTokens::Kind::mask:
      best.add_masked(beam, score, row_, allowed.mask, any);
      offer_stops(beam, score, allowed, best);
      break;
  }
  for (const TokenId token : allowed.wanted) {
    const float log_probability = row_[static_cast<std::size_t>(checked(token))];
    if (score + log_probability > -std::numeric_limits<float>::infinity()) {
      wanted.push_back({score + log_probability, beam, token, log_probability});
    }
  }
}

TokenId BeamGroup::checked(TokenId token) const {
  if (token < 0 || static_cast<std::size_t>(token) >= vocabulary_) {
    fail({.op = "beam",
          .what = "constraint",
          .expected = "token ids 0 to " + std::to_string(vocabulary_ - 1),
          .got = std::to_string(token),
          .todo = "make the constraint with the model's own tokenizer"});
  }
  return token;
}

void BeamGroup::offer_stops(std::size_t beam, float score, const AllowedTokens& allowed,
                            BestContinuations& best) {
  if (!allowed.may_end) return;
  for (const TokenId token : options_.stop_ids) {
    if (!contains(allowed, token)) best.add(beam, score, row_, token, [](TokenId) { return true; });
  }
}

/// A single beam is chosen by logits; its score counts the model's own log-probability.
void BeamGroup::score_single(const Step& step, Continuation& chosen) const {
  const Beam& beam = beams_.front();
  const auto row = step.logits.subspan(beam.row * vocabulary_, vocabulary_);
  const float raw = row[static_cast<std::size_t>(chosen.token)];
  const bool are_logits = options_.scores == ModelScores::logits;
  chosen.log_probability = are_logits ? log_normaliser(row)(raw) : raw;
  chosen.score = beam.score + chosen.log_probability;
}

/// Why a continuation ends its hypothesis whatever a constraint says, if it does. Asked before `length_`
/// counts the step.
std::optional<FinishReason> BeamGroup::end_of(const Step& step, const Continuation& continuation) {
  if (is_stop(continuation.token)) return FinishReason::stop_token;
  if (!options_.stop.empty() && ends_in_stop_string(step, continuation)) return FinishReason::stop_string;
  if (length_ + 1 == options_.max_new_tokens) return FinishReason::length;
  return std::nullopt;
}

/// Whether a stop string ends in the text of the last token; it may begin in the prompt, as in transformers'
/// StopStringCriteria.
bool BeamGroup::ends_in_stop_string(const Step& step, const Continuation& continuation) {
  constexpr std::size_t kMargin = 4;  // tokens without text, and a character that the tail cuts in two
  const std::size_t longest = std::ranges::max(options_.stop, {}, &std::string::size).size();
  sequence_.resize(prompt_.size());
  step.tree.append_path(beams_[continuation.beam].node, sequence_);
  sequence_.push_back(continuation.token);
  const std::span<const TokenId> all = sequence_;
  const auto tail = all.last(std::min(all.size(), longest + kMargin));
  const std::string text = hooks_.tokenizer->decode(tail);
  std::optional<std::size_t> before;  // bytes without the last token
  for (const std::string& stop : options_.stop) {
    const std::size_t at = text.rfind(stop);
    if (at == std::string::npos) continue;
    if (!before) before = hooks_.tokenizer->decode(tail.first(tail.size() - 1)).size();
    if (at + stop.size() > *before) return true;
  }
  return false;
}

/// Asks the constraint what the candidate leads to.
void BeamGroup::examine(Candidate& candidate) {
  const Constraint* constraint = hooks_.constraint;
  if (constraint == nullptr || candidate.is_examined) return;
  candidate.is_examined = true;
  if (candidate.end == FinishReason::stop_token) return;
  const Continuation& c = candidate.continuation;
  candidate.state = {constraint, constraint->advance(beams_[c.beam].state.get(), c.token)};
  candidate.progress = constraint->progress(candidate.state.get());
  const Constraint::Ending ending = constraint->ending(candidate.state.get());
  candidate.may_end = ending != Constraint::Ending::no;
  const bool has_stops = !options_.stop_ids.empty();
  const bool completes = candidate.may_end && !has_stops && constraint->ends_by_itself();
  if (candidate.end != FinishReason::stop_string && completes) {
    candidate.goes_on = !candidate.end && ending == Constraint::Ending::may;
    candidate.end = FinishReason::complete;
  } else if (!candidate.end) {
    candidate.goes_on = has_stops || ending != Constraint::Ending::must;
  }
}

/// Ended continuations compete with the finished. transformers looks at the first `width_` candidates alone:
/// one further down that ends vanishes. Where a constraint decides who may end, that would lose the only
/// ones.
void BeamGroup::finish(const Step& step, std::vector<Candidate>& candidates) {
  const bool is_last = hooks_.constraint != nullptr && length_ + 1 == options_.max_new_tokens;
  const bool looks_at_all = !is_exact() || is_last || required() > 0;
  const std::size_t eligible = looks_at_all ? candidates.size() : std::min(width_, candidates.size());
  for (std::size_t i = 0; i < eligible; ++i) {
    Candidate& candidate = candidates[i];
    examine(candidate);
    const Continuation& c = candidate.continuation;
    const float score = length_normalised(c.score, length_ + 1, options_.length_penalty);
    if (!candidate.end || !candidate.may_end || !(score > kImpossibleScore)) {
      continue;  // an empty place counts as kImpossibleScore, and among equals the older stays
    }
    const auto worse = [&](const FinishedBeam& f) { return f.score < score; };
    finished_.insert(std::ranges::find_if(finished_, worse), {.node = node_of(step, c),
                                                              .score = score,
                                                              .reason = *candidate.end,
                                                              .is_real = is_real(c.score),
                                                              .parent_row = beams_[c.beam].row});
  }
  const std::size_t wanted = std::min(options_.num_return, options_.beams / options_.groups);
  finished_.resize(std::min(finished_.size(), std::max(width_, wanted)));
}

/// The best `width_` that go on. In transformers an ended one sinks by 1e9 and is used for want of others.
void BeamGroup::keep_running(const Step& step, std::vector<Candidate>& candidates) {
  std::vector<std::size_t> order = by_score(candidates);
  if (required() > 0) spread_over_banks(candidates, order);
  std::vector<Beam> running;
  for (const std::size_t i : order) {
    if (running.size() == width_) break;
    Candidate& candidate = candidates[i];
    if (!may_run(candidate)) continue;
    const Continuation& c = candidate.continuation;
    const float score = c.score + (candidate.goes_on ? 0.0f : kImpossibleScore);
    running.push_back({node_of(step, c), score, beams_[c.beam].row, std::move(candidate.state)});
  }
  beams_ = std::move(running);
}

/// What the beams chose; in the last step, where none goes on, what the best that no stop ended chose.
void BeamGroup::note_chosen(const Step& step, const std::vector<Candidate>& candidates) {
  chosen_.clear();
  if (length_ < options_.max_new_tokens) {
    for (const Beam& beam : beams_) chosen_.push_back(step.tree[beam.node].token);
    return;
  }
  for (const Candidate& candidate : candidates) {
    if (chosen_.size() == width_) break;
    if (candidate.end == FinishReason::length) chosen_.push_back(candidate.continuation.token);
  }
}

bool BeamGroup::may_run(Candidate& candidate) {
  examine(candidate);
  return candidate.goes_on || (is_exact() && hooks_.constraint == nullptr);
}

/// Indices of the candidates, best first, those that end after all others.
std::vector<std::size_t> BeamGroup::by_score(const std::vector<Candidate>& candidates) const {
  std::vector<float> scores;
  scores.reserve(candidates.size());
  for (const Candidate& c : candidates) {
    scores.push_back(c.continuation.score + (c.goes_on ? 0.0f : kImpossibleScore));
  }
  std::vector<std::size_t> order(candidates.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::stable_sort(order, [&](std::size_t a, std::size_t b) { return scores[a] > scores[b]; });
  return order;
}

/// Puts first those that dynamic beam allocation keeps (Post & Vilar 2018, arXiv:1804.06609): candidates
/// compete with those that have met as much of the constraint, each such bank has its share of the beams, and
/// what a bank cannot fill goes to the next best of all.
void BeamGroup::spread_over_banks(std::vector<Candidate>& candidates, std::vector<std::size_t>& order) {
  const std::size_t banks = required() + 1;
  std::vector<std::size_t> room(banks, width_ / banks);
  for (std::size_t i = 0; i < width_ % banks; ++i) ++room[banks - 1 - i];
  std::vector<std::size_t> chosen;
  std::vector<std::size_t> others;
  for (const std::size_t i : order) {
    if (!may_run(candidates[i])) continue;
    std::size_t& left = room[std::min(candidates[i].progress, banks - 1)];
    (left > 0 ? chosen : others).push_back(i);
    left -= left > 0 ? 1 : 0;
  }
  chosen.insert(chosen.end(), others.begin(), others.end());
  chosen.resize(std::min(chosen.size(), width_));
  std::ranges::stable_sort(chosen, std::greater<>{},
                           [&](std::size_t i) { return candidates[i].continuation.score; });
  order = std::move(chosen);
}

/// Drops beams that can no longer become one of the hypotheses to return: log-probabilities only sink, so a
/// beam's score at the length that favours it most bounds what it can become.
void BeamGroup::prune() {
  const std::size_t needed = std::min(options_.num_return, width_);
  if (finished_.size() < needed || !options_.sequence_bias.empty() || is_sampling()) return;
  const bool favours_long = options_.length_penalty > 0.0;
  const std::size_t best_length = favours_long ? options_.max_new_tokens : length_ + 1;
  std::erase_if(beams_, [&](const Beam& beam) {
    const float bound = length_normalised(beam.score, best_length, options_.length_penalty);
    return !(bound > finished_[needed - 1].score);
  });
}

/// Whether no later step can matter; `length_` counts the step that was just made.
bool BeamGroup::is_over(bool all_end) const {
  const bool is_full = finished_.size() >= width_;
  if (beams_.empty() || length_ == options_.max_new_tokens || all_end ||
      (is_full && options_.early_stopping == EarlyStopping::yes)) {
    return true;
  }
  const bool may_grow = options_.early_stopping == EarlyStopping::never && options_.length_penalty > 0.0;
  const float best_possible = length_normalised(
      beams_.front().score, may_grow ? options_.max_new_tokens : length_, options_.length_penalty);
  return !(best_possible > (is_full ? finished_[width_ - 1].score : kImpossibleScore));
}

/// The node of a continuation: what another beam of this step, or another group, has made already, or a new
/// one.
std::uint32_t BeamGroup::node_of(const Step& step, const Continuation& c) const {
  const std::uint32_t parent = beams_[c.beam].node;
  for (auto i = static_cast<std::uint32_t>(step.tree.size()); i-- > step.first_new;) {
    if (step.tree[i].parent == parent && step.tree[i].token == c.token) return i;
  }
  return step.tree.add(
      {.parent = parent, .token = c.token, .log_probability = c.log_probability, .score = c.score});
}

}  // namespace modicum::detail
