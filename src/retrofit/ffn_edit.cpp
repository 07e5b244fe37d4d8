// SPDX-License-Identifier: Apache-2.0
#include <modicum/retrofit/channels.hpp>

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

void LayerEditor::edit_ffn(Step& step, const ActivationFile& goal) {
  const bool shapes = narrows_or_bridges(step.index);
  const bool calibrated = calibrated_rounding();
  if (shapes || calibrated) {
    // Before channels go, the layer is as wide as it was.
    ModelConfig wide = planned_;
    wide.intermediate_size = config_.intermediate_size;
    LayerPass pass = pass_of(wide);
    Gathering gathering(config_.intermediate_size, config_.hidden_size, weights_.dtype, chunks_);
    SecondMoments inputs;
    ChannelMagnitudes magnitudes;
    if (calibrated) {
      inputs = SecondMoments(config_.hidden_size, 0, weights_.dtype, chunks_.rows(false));
      magnitudes = ChannelMagnitudes(config_.hidden_size);
    }
    for (const Chunk& chunk : chunks_.list()) {
      tell(chunk, 0.6);
      read_inner(step, pass, chunk);
      const Targets t =
          targets(goal.row(chunk.first_row), pass.middle.data(), step.student.weights().down, chunk.rows);
      gathering.of(chunk).add(pool_, pass.inner.data(), t.rows.data(), chunk.rows, t.factors);
      if (!calibrated || chunk.held_out) continue;
      inputs.add(pool_, pass.ffn_input.data(), nullptr, chunk.rows);
      magnitudes.add(pass.ffn_input.data(), chunk.rows);
    }
    FitMoments moments = finished(gathering);
    if (plan_.ffn) narrow(step, moments);
    if (shapes) {
      const bool refit =
          bridges(step.index) ? plan_.depth->refit != Refit::none : plan_.ffn->refit != Refit::none;
      fit(step, Linear::down, plan_.ffn ? "ffn" : "depth", refit, widened(step.student.weights().down.weight),
          moments);
    }
    if (calibrated) {
      inputs.finish(pool_);
      linalg::Matrix gram = std::move(inputs).moments().gram / static_cast<double>(magnitudes.rows());
      fold_scales(step, {Linear::gate, Linear::up}, gram, magnitudes);
      for (const Linear linear : {Linear::gate, Linear::up}) round_linear(step, linear, &gram);
    }
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
    tell(chunk, 0.8);
    read_inner(step, pass, chunk);
    const Targets t =
        targets(goal.row(chunk.first_row), pass.middle.data(), step.student.weights().down, chunk.rows);
    gathering.of(chunk).add(pool_, pass.inner.data(), t.rows.data(), chunk.rows, t.factors);
  }
  const FitMoments moments = finished(gathering);
  fit(step, Linear::down, "quantize", true, widened(step.student.weights().down.weight), moments);
  round_linear(step, Linear::down, &moments.fitted.gram);
}

}  // namespace modicum::retrofit
