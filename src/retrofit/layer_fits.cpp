// SPDX-License-Identifier: Apache-2.0
#include "layer_editor.hpp"

namespace modicum::retrofit {

LayerEditor::Targets LayerEditor::targets(const float* goal, const float* have, const LinearWeights& before,
                                          std::size_t rows) const {
  const std::size_t width = config_.hidden_size;
  const float* const bias = before.bias_or_null();
  Targets t;
  t.rows.resize(rows * width);
  pool_.run(rows, [&](std::size_t r) {
    for (std::size_t c = 0; c < width; ++c) {
      t.rows[r * width + c] = goal[r * width + c] - have[r * width + c] - (bias == nullptr ? 0.0f : bias[c]);
    }
  });
  if (options_.relative) t.factors = relative_factors(goal, rows, width);
  return t;
}

LayerEditor::FitMoments LayerEditor::finished(Gathering& gathering) const {
  gathering.fitted.finish(pool_);
  gathering.held_out.finish(pool_);
  return {std::move(gathering.fitted).moments(), std::move(gathering.held_out).moments()};
}

void LayerEditor::fit(Step& step, Linear linear, const char* edit, bool refit, const linalg::Matrix& before,
                      const FitMoments& moments) {
  EditError error{.layer = step.layer,
                  .edit = edit,
                  .module = std::string(module_of(linear)),
                  .before = relative_error(before, moments.fitted),
                  .held_out_before = relative_error(before, moments.held_out)};
  error.after = error.before;
  error.held_out_after = error.held_out_before;
  if (refit) {
    RidgeFit best = ridge_select(moments.fitted, moments.held_out, before, default_dampings());
    // What does not help on text that it did not see does not help.
    if (best.held_out_error < error.held_out_before) {
      step.student.set_matrix(linear, best.w);
      error.after = best.error;
      error.held_out_after = best.held_out_error;
      error.damping = best.damping;
    }
  }
  step.errors.push_back(std::move(error));
}

}  // namespace modicum::retrofit
