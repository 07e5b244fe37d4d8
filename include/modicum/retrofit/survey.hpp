// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <map>
#include <vector>

#include <modicum/base/progress.hpp>
#include <modicum/base/thread_pool.hpp>
#include <modicum/io/checkpoint.hpp>
#include <modicum/retrofit/run.hpp>

namespace modicum::retrofit {

/// Which amounts of each edit to judge.
struct SurveyOptions {
  std::vector<std::size_t> widths;    ///< of feed-forward layers, smaller than they are
  std::vector<std::size_t> kv_heads;  ///< divisors of what there is
  std::vector<std::size_t> bits;      ///< 2 to 8, by groups of 32
};

/// What each edit would lose in one layer, by amount: shares of the energy of what it has to reproduce.
struct LayerSurvey {
  std::map<std::size_t, double> ffn;        ///< by width, after the refit, on held-out text
  std::map<std::size_t, double> kv_scores;  ///< by heads (`KvMerge::score_error`)
  std::map<std::size_t, double> kv_values;
  std::map<std::size_t, double> bits;  ///< by bits, rounded to nearest: mean of the seven linear layers
};

struct Survey {
  std::vector<LayerSurvey> layers;
  /// [n − 1][i]: mean angle, as a share of π, between hidden states before layer i and after layer i + n − 1
  /// (Gromov et al. 2024, arXiv 2403.17887): how much n layers from i on turn them.
  std::vector<std::vector<double>> angles;
};

/// The error curves of all edits from one pass over the text, of the model as it is: each layer by itself,
/// without what the edits of others do to it. Memory: the hidden states of the text, and what `run` takes
/// for a layer. Throws as `run`.
Survey survey(const Checkpoint& from, const CalibrationTokens& calibration, const SurveyOptions& options,
              ThreadPool& pool, const Progress& progress = {});

}  // namespace modicum::retrofit
