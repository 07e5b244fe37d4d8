// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <optional>
#include <utility>

#include <modicum/retrofit/channels.hpp>
#include <modicum/retrofit/ffn_refine.hpp>

#include "layer_editor.hpp"

namespace modicum::retrofit {

void LayerEditor::narrow(Step& step, FitMoments& moments) {
  const linalg::Matrix w = widened(step.student.weights().down.weight);
  const std::vector<std::size_t> kept =
      choose_channels(moments.fitted, w, plan_.ffn->intermediate_size, plan_.ffn->choice);
  step.student.keep_rows(Linear::gate, kept);
  step.student.keep_rows(Linear::up, kept);
  step.student.set_matrix(Linear::down, w(Eigen::all, kept));
  moments.fitted = moments_of(moments.fitted, kept);
  moments.held_out = moments_of(moments.held_out, kept);
}

/// What `refine` reads: all rows of the text, in files.
struct LayerEditor::RefineRows {
  ActivationFile x, targets;
  std::vector<float> factors;

  RefineRows(const LayerEditor& editor)
      : x(editor.new_stream("refine-x", 0)), targets(editor.new_stream("refine-t", 0)) {}

  void add(const LayerPass& pass, const float* goal, const Chunk& chunk, std::size_t width,
           std::span<const float> chunk_factors) {
    std::copy_n(pass.ffn_input.data(), chunk.rows * width, x.row(chunk.first_row));
    float* const t = targets.row(chunk.first_row);
    for (std::size_t i = 0; i < chunk.rows * width; ++i) t[i] = goal[i] - pass.middle[i];
    factors.insert(factors.end(), chunk_factors.begin(), chunk_factors.end());
  }
};

bool LayerEditor::alternates(std::size_t step) const {
  return (plan_.ffn && plan_.ffn->refit == Refit::alternating) ||
         (bridges(step) && plan_.depth->refit == Refit::alternating);
}

void LayerEditor::refine(Step& step, const RefineRows& rows) {
  const LayerWeights& w = step.student.weights();
  FfnWeights weights{.width = config_.hidden_size,
                     .inner = w.gate.weight.rows,
                     .gate = floats_of(w.gate.weight),
                     .up = floats_of(w.up.weight),
                     .down = floats_of(w.down.weight),
                     .gate_bias = w.gate.bias,
                     .up_bias = w.up.bias,
                     .down_bias = w.down.bias};
  const RefineReport report = refine_ffn(weights,
                                         {.x = rows.x.row(0),
                                          .targets = rows.targets.row(0),
                                          .factors = rows.factors,
                                          .fitted = chunks_.rows(false),
                                          .held_out = chunks_.rows(true)},
                                         {.iterations = 4, .dtype = weights_.dtype}, pool_, cancellation());
  step.student.set_matrix(Linear::gate, weights.gate, weights.inner);
  step.student.set_matrix(Linear::up, weights.up, weights.inner);
  step.student.set_matrix(Linear::down, weights.down, weights.width);
  step.errors.push_back({.layer = step.layer,
                         .edit = plan_.ffn ? "ffn" : "depth",
                         .module = "mlp",
                         .before = report.error_before,
                         .after = report.error_after,
                         .held_out_before = report.held_out_before,
                         .held_out_after = report.held_out_after});
}

LayerEditor::Targets LayerEditor::gather_inner(const Step& step, const LayerPass& pass, const Chunk& chunk,
                                               const ActivationFile& goal, Gathering& gathering) {
  Targets t = targets(goal.row(chunk.first_row), pass.middle.data(), step.student.weights().down, chunk.rows);
  gathering.of(chunk).add(pool_, pass.inner.data(), t.rows.data(), chunk.rows, t.factors);
  return t;
}

void LayerEditor::edit_ffn(Step& step, const ActivationFile& goal) {
  const bool shapes = narrows_or_bridges(step.index);
  const bool calibrated = calibrated_rounding();
  if (shapes || calibrated) {
    // Before channels go, the layer is as wide as it was.
    ModelConfig wide = planned_;
    wide.intermediate_size = config_.intermediate_size;
    LayerPass pass = pass_of(wide);
    std::optional<Gathering> gathering;
    if (shapes) gathering.emplace(config_.intermediate_size, config_.hidden_size, weights_.dtype, chunks_);
    std::optional<InputStatistics> inputs;
    if (calibrated) inputs.emplace(config_.hidden_size, weights_.dtype, chunks_);
    std::optional<RefineRows> rows;
    if (alternates(step.index)) rows.emplace(*this);
    for (const Chunk& chunk : chunks_.list()) {
      tell(chunk, Phase::ffn);
      read_inner(step, pass, chunk);
      if (gathering) {
        const Targets t = gather_inner(step, pass, chunk, goal, *gathering);
        if (rows) rows->add(pass, goal.row(chunk.first_row), chunk, config_.hidden_size, t.factors);
      }
      if (inputs && !chunk.held_out) inputs->add(pool_, pass.ffn_input.data(), chunk.rows);
    }
    if (gathering) {
      FitMoments moments = finished(*gathering);
      if (plan_.ffn) narrow(step, moments);
      const bool refit =
          bridges(step.index) ? plan_.depth->refit != Refit::none : plan_.ffn->refit != Refit::none;
      fit(step, Linear::down, plan_.ffn ? "ffn" : "depth", refit, widened(step.student.weights().down.weight),
          moments);
    }
    if (rows) refine(step, *rows);
    if (inputs) round_inputs(step, {Linear::gate, Linear::up}, *inputs);
  }
  if (calibrated) return edit_down(step, goal);
  if (!plan_.quantize) return;
  for (const Linear linear : {Linear::gate, Linear::up, Linear::down}) round_linear(step, linear, nullptr);
}

/// The down projection of inputs that come from integers now: fitted to make up for them, then rounded.
void LayerEditor::edit_down(Step& step, const ActivationFile& goal) {
  Gathering gathering(planned_.intermediate_size, config_.hidden_size, weights_.dtype, chunks_);
  LayerPass pass = pass_of(planned_);
  for (const Chunk& chunk : chunks_.list()) {
    tell(chunk, Phase::down);
    read_inner(step, pass, chunk);
    gather_inner(step, pass, chunk, goal, gathering);
  }
  const FitMoments moments = finished(gathering);
  fit(step, Linear::down, "refit", true, widened(step.student.weights().down.weight), moments);
  round_linear(step, Linear::down, &moments.fitted.gram);
}

}  // namespace modicum::retrofit
