// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstddef>
#include <string>
#include <vector>

#include <modicum/base/error.hpp>
#include <modicum/search/beam.hpp>

namespace modicum::detail {

PromptSearch::PromptSearch(const BeamOptions& options, const BeamHooks& hooks,
                           std::span<const TokenId> prompt, std::size_t vocabulary, std::size_t number)
    : options_(options), vocabulary_(vocabulary) {
  groups_.reserve(options.groups);
  for (std::size_t i = 0; i < options.groups; ++i) {
    const std::uint64_t seed = options.sampling.seed + number * options.groups + i;
    groups_.emplace_back(options, hooks, prompt, vocabulary, options.beams / options.groups, number, seed);
  }
}

bool PromptSearch::is_done() const {
  return std::ranges::all_of(groups_, &BeamGroup::is_done);
}

void PromptSearch::select(std::span<const float> logits) {
  first_new_ = static_cast<std::uint32_t>(tree_.size());
  const bool is_diverse = groups_.size() > 1 && options_.diversity_penalty > 0.0;
  if (is_diverse) penalties_.assign(vocabulary_, 0.0f);  // else empty
  for (BeamGroup& group : groups_) {
    if (group.is_done()) continue;
    const bool is_first = &group == &groups_.front();
    group.select(tree_, first_new_, logits, is_first ? std::span<const float>() : penalties_);
    if (!is_diverse) continue;
    for (const TokenId token : group.chosen()) {
      penalties_[static_cast<std::size_t>(token)] += static_cast<float>(options_.diversity_penalty);
    }
  }
  ++stats_.steps;
  count_live_tokens();
}

/// Live tokens are the union of the live beams' paths: each is walked up to where another was before.
void PromptSearch::count_live_tokens() {
  seen_.resize(tree_.size(), 0);
  const auto step = static_cast<std::uint32_t>(stats_.steps);
  std::size_t live = 0;
  stats_.width = 0;
  for (const BeamGroup& group : groups_) {
    stats_.width += group.width();
    for (const Beam& beam : group.beams()) {
      for (std::uint32_t node = beam.node; node != SearchTree::kRoot && seen_[node] != step;
           node = tree_[node].parent) {
        seen_[node] = step;
        ++live;
      }
    }
  }
  stats_.peak_tokens = std::max(stats_.peak_tokens, live);
}

bool PromptSearch::narrow() {
  const auto widest =
      std::ranges::max_element(groups_, {}, [](const BeamGroup& group) { return group.beams().size(); });
  return widest->narrow();
}

std::vector<const FinishedBeam*> PromptSearch::ranked() const {
  std::vector<const FinishedBeam*> all;
  for (const BeamGroup& group : groups_) {
    for (const FinishedBeam& f : group.finished()) {
      if (f.is_real) all.push_back(&f);
    }
  }
  std::ranges::stable_sort(all, std::greater<>{}, &FinishedBeam::score);
  return all;
}

std::vector<TokenId> PromptSearch::newly_stable() {
  const auto best = ranked();
  std::optional<std::uint32_t> common;
  const auto join = [&](std::uint32_t node) {
    if (!common) common = node;
    while (*common != node) {  // a parent's index is smaller than its children's
      (*common > node ? *common : node) = tree_[std::max(*common, node)].parent;
    }
  };
  if (!best.empty()) join(best.front()->node);
  for (const BeamGroup& group : groups_) {
    for (const Beam& beam : group.beams()) join(beam.node);
  }
  std::vector<TokenId> ids;
  if (!common) return ids;
  for (std::uint32_t node = *common; node != told_ && node != SearchTree::kRoot; node = tree_[node].parent) {
    ids.push_back(tree_[node].token);
  }
  std::ranges::reverse(ids);
  told_ = *common;
  return ids;
}

std::vector<Hypothesis> PromptSearch::take_hypotheses() {
  std::vector<Hypothesis> hypotheses;
  for (const FinishedBeam* f : ranked()) {
    if (hypotheses.size() == options_.num_return) break;
    tree_.set_end(f->node, f->reason);
    hypotheses.push_back({.ids = tree_.path(f->node),
                          .score = f->score,
                          .finish_reason = f->reason,
                          .log_probabilities = tree_.log_probabilities(f->node),
                          .node = f->node});
  }
  if (hypotheses.empty()) {
    fail({.op = "beam",
          .what = "hypotheses",
          .expected = "at least one text of at most " + std::to_string(options_.max_new_tokens) +
                      " tokens that the constraint and the processors allow",
          .got = "none",
          .todo = "raise max_new_tokens or beams, or loosen the constraint"});
  }
  return hypotheses;
}

}  // namespace modicum::detail
