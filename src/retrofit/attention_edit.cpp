// SPDX-License-Identifier: Apache-2.0
#include <optional>

#include <modicum/retrofit/kv_merge.hpp>

#include "attention_weights.hpp"
#include "layer_editor.hpp"

namespace modicum::retrofit {
namespace {

std::vector<float> to_floats(const linalg::Vector& vector) {
  return {vector.begin(), vector.end()};
}

}  // namespace

void LayerEditor::merge_heads(Step& step, const KvStatistics& statistics) {
  const bool pooled = plan_.kv->method == KvMergeMethod::mean || plan_.kv->method == KvMergeMethod::first;
  const KvMerge merged = merge_kv(attention_weights(step.student.weights(), config_), statistics,
                                  {.kv_heads = plan_.kv->kv_heads,
                                   .method = plan_.kv->method,
                                   .grouping = pooled ? KvGrouping::consecutive : KvGrouping::found});
  StudentLayer& student = step.student;
  student.set_matrix(Linear::q, merged.weights.q);
  student.set_matrix(Linear::k, merged.weights.k);
  student.set_matrix(Linear::v, merged.weights.v);
  student.set_matrix(Linear::o, merged.weights.o);
  student.set_bias(Linear::q, to_floats(merged.weights.q_bias));
  student.set_bias(Linear::k, to_floats(merged.weights.k_bias));
  student.set_bias(Linear::v, to_floats(merged.weights.v_bias));
  for (const auto& [module, error] :
       {std::pair(Linear::k, merged.score_error), std::pair(Linear::v, merged.value_error)}) {
    step.errors.push_back({.layer = step.layer,
                           .edit = "kv",
                           .module = std::string(module_of(module)),
                           .before = 1.0,
                           .after = error,
                           .held_out_before = 1.0,
                           .held_out_after = error});
  }
}

void LayerEditor::edit_attention_inputs(Step& step) {
  const HeadShape shape{config_.num_attention_heads, config_.num_key_value_heads, config_.head_dim};
  KvStatistics heads(shape);
  std::optional<InputStatistics> inputs;
  if (calibrated_rounding()) inputs.emplace(config_.hidden_size, weights_.dtype, chunks_);
  LayerPass pass = pass_of(config_);
  for (const Chunk& chunk : chunks_.list()) {
    if (chunk.held_out) continue;
    tell(chunk, Phase::inputs);
    pass.project(step.student.weights(), student_row(chunk.first_row), chunk.sequences);
    if (plan_.kv) heads.update(pool_, pass.q.data(), pass.k.data(), pass.v.data(), chunk.rows);
    if (inputs) inputs->add(pool_, pass.attention_input.data(), chunk.rows);
  }
  if (plan_.kv) merge_heads(step, heads);
  if (inputs) round_inputs(step, {Linear::q, Linear::k, Linear::v}, *inputs);
}

void LayerEditor::edit_output(Step& step, const ActivationFile& goal) {
  if (plan_.quantize && !calibrated_rounding()) {
    for (const Linear linear : {Linear::q, Linear::k, Linear::v}) round_linear(step, linear, nullptr);
  }
  const bool refit = refits_output(step.layer) || calibrated_rounding();
  if (refit) {
    Gathering gathering(config_.query_width(), config_.hidden_size, weights_.dtype, chunks_);
    LayerPass pass = pass_of(planned_);
    for (const Chunk& chunk : chunks_.list()) {
      tell(chunk, Phase::output);
      const float* const x = student_row(chunk.first_row);
      pass.project(step.student.weights(), x, chunk.sequences);
      pass.attend(window_after(step.index));
      const Targets t = targets(goal.row(chunk.first_row), x, step.student.weights().o, chunk.rows);
      gathering.of(chunk).add(pool_, pass.heads.data(), t.rows.data(), chunk.rows, t.factors);
    }
    const FitMoments moments = finished(gathering);
    const char* const edit = plan_.kv ? "kv" : windowed(step.layer) ? "window" : "refit";
    fit(step, Linear::o, edit, true, widened(step.student.weights().o.weight), moments);
    if (calibrated_rounding()) round_linear(step, Linear::o, &moments.fitted.gram);
  }
  if (plan_.quantize && !calibrated_rounding()) round_linear(step, Linear::o, nullptr);
}

}  // namespace modicum::retrofit
