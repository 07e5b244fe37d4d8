// SPDX-License-Identifier: Apache-2.0
// The specification of beam search: transformers' `_beam_search` for one prompt, written as plainly as it
// goes, over whole [beams × vocabulary] arrays and with no cache at all.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include <modicum/decode/log_softmax.hpp>
#include <modicum/decode/processors.hpp>
#include <modicum/search/beam.hpp>

#include "decode/toy_model.hpp"

namespace reference {

using modicum::BeamOptions;
using modicum::EarlyStopping;
using modicum::TokenId;

struct Beam {
  std::vector<TokenId> ids;
  float score = -1e9f;
  bool finished = false;
};

/// The indices of the k largest, the first of equal ones first.
inline std::vector<std::size_t> top_k(const std::vector<float>& values, std::size_t k) {
  std::vector<std::size_t> order(values.size());
  std::iota(order.begin(), order.end(), 0u);
  std::ranges::stable_sort(order, [&](auto a, auto b) { return values[a] > values[b]; });
  order.resize(k);
  return order;
}

inline std::vector<float> accumulated(const toy::HashModel& model, const std::vector<TokenId>& prompt,
                                      const std::vector<Beam>& running, const BeamOptions& o) {
  std::vector<float> all;
  for (const Beam& beam : running) {
    std::vector<TokenId> sequence = prompt;
    sequence.insert(sequence.end(), beam.ids.begin(), beam.ids.end());
    std::vector<float> row = model.logits(toy::HashModel::read_all(sequence));
    modicum::log_softmax(row);
    modicum::RepetitionPenalty(o.repetition_penalty, row.size()).apply(row, sequence, {});
    if (beam.ids.size() < o.min_new_tokens) {
      modicum::suppress(row, o.stop_ids);
    }
    for (const float log_probability : row) {
      all.push_back(log_probability + beam.score);
    }
  }
  return all;
}

inline std::vector<Beam> best(const std::vector<Beam>& beams, std::size_t k) {
  std::vector<float> scores;
  for (const Beam& beam : beams) {
    scores.push_back(beam.score);
  }
  std::vector<Beam> out;
  for (const std::size_t i : top_k(scores, k)) {
    out.push_back(beams[i]);
  }
  return out;
}

inline float penalised(float score, std::size_t length, double penalty) {
  return score / static_cast<float>(std::pow(static_cast<double>(length), penalty));
}

struct Outcome {
  std::vector<Beam> beams;  ///< best first; unfinished places have `finished` false
  std::size_t steps;        ///< tokens that were chosen on each beam until the search ended
};

inline Outcome beam_search(const toy::HashModel& model, const std::vector<TokenId>& prompt,
                           const BeamOptions& o) {
  std::vector<Beam> running(o.beams), finished(o.beams);
  running[0].score = 0.0f;
  bool improvable = true;
  for (std::size_t length = 1;; ++length) {
    const std::vector<float> scores = accumulated(model, prompt, running, o);
    std::vector<Beam> next, ended;
    bool all_hit = true;
    for (const std::size_t flat : top_k(scores, std::max<std::size_t>(2, 1 + o.stop_ids.size()) * o.beams)) {
      Beam candidate = running[flat / model.vocabulary];
      candidate.ids.push_back(static_cast<TokenId>(flat % model.vocabulary));
      candidate.score = scores[flat];
      const bool hit = length == o.max_new_tokens || std::ranges::count(o.stop_ids, candidate.ids.back()) > 0;
      all_hit = all_hit && hit;
      Beam end = candidate;
      end.finished = hit && next.size() < o.beams;
      end.score = penalised(end.score, length, o.length_penalty);
      const bool full = std::ranges::all_of(finished, &Beam::finished);
      end.score += full && o.early_stopping == EarlyStopping::yes ? -1e9f : 0.0f;
      end.score += improvable ? 0.0f : -1e9f;
      end.score += end.finished ? 0.0f : -1e9f;
      ended.push_back(end);
      candidate.score += hit ? -1e9f : 0.0f;
      next.push_back(candidate);
    }
    running = best(next, o.beams);
    std::vector<Beam> merged = finished;
    merged.insert(merged.end(), ended.begin(), ended.end());
    finished = best(merged, o.beams);

    const bool full = std::ranges::all_of(finished, &Beam::finished);
    const bool may_grow = o.early_stopping == EarlyStopping::never && o.length_penalty > 0.0;
    const float possible =
        penalised(running[0].score, may_grow ? o.max_new_tokens : length, o.length_penalty);
    float least = finished[0].score;
    for (const Beam& beam : finished) {
      least = std::min(least, beam.score);
    }
    improvable = improvable && std::ranges::any_of(finished, [&](const Beam& beam) {
                   return possible > (beam.finished ? least : -1e9f);
                 });
    if (!improvable || (full && o.early_stopping == EarlyStopping::yes) || all_hit) {
      return {finished, length};
    }
  }
}

}  // namespace reference
