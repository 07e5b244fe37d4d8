// SPDX-License-Identifier: Apache-2.0
#include <initializer_list>

#include <modicum/retrofit/scale_fold.hpp>

#include "layer_editor.hpp"
#include "standard_form.hpp"

namespace modicum::retrofit {
namespace {

bool whole_groups(std::size_t cols, const QuantizeEdit& edit) {
  return cols % (edit.group == 0 ? kQuantGroup : edit.group) == 0;
}

std::size_t bits_of(const QuantizeEdit& edit, std::size_t layer) {
  const auto own = edit.layer_bits.find(layer);
  return own == edit.layer_bits.end() ? edit.bits : own->second;
}

}  // namespace

std::vector<QuantizedModule> quantized_modules(const ModelConfig& config, const Plan& plan) {
  std::vector<QuantizedModule> modules;
  if (!plan.quantize) return modules;
  const ModelConfig planned = planned_config(config, plan);
  for (const std::size_t layer : kept_layers(config, plan)) {
    for (const Linear linear : kLinears) {
      if (!whole_groups(shape_of(planned, linear).second, *plan.quantize)) continue;
      modules.push_back(
          {.name = "model.layers." + std::to_string(layer) + "." + std::string(module_of(linear)),
           .bits = bits_of(*plan.quantize, layer),
           .group = plan.quantize->group});
    }
  }
  return modules;
}

std::size_t LayerEditor::bits_of_layer(std::size_t layer) const {
  return bits_of(*plan_.quantize, layer);
}

bool LayerEditor::rounds(std::size_t cols) const {
  return whole_groups(cols, *plan_.quantize);
}

RoundOptions LayerEditor::round_options(const Step& step) const {
  return {.bits = bits_of_layer(step.layer),
          .group = plan_.quantize->group,
          .scale_dtype = weights_.dtype,
          .act_order = plan_.quantize->rounding == Rounding::gptq && plan_.quantize->group != 0};
}

void LayerEditor::fold_scales(Step& step, std::initializer_list<Linear> linears, linalg::Matrix& gram,
                              const ChannelMagnitudes& magnitudes) {
  if (plan_.quantize->scaling == Scaling::none || !rounds(config_.hidden_size)) return;
  std::vector<std::vector<float>> matrices;
  std::vector<LinearView> views;
  for (const Linear linear : linears) {
    const WeightView weight = weights_of(step.student.weights(), linear).weight;
    matrices.push_back(floats_of(weight));
    views.push_back({matrices.back(), weight.rows});
  }
  std::vector<float> scales;
  if (plan_.quantize->scaling == Scaling::awq) {
    scales = awq_scales(views, gram, magnitudes.mean(), round_options(step), pool_).scales;
  } else {
    scales = smooth_scales(views, magnitudes.largest());
  }
  std::size_t i = 0;
  for (const Linear linear : linears) {
    scale_columns(matrices[i], views[i].rows, scales);
    step.student.set_matrix(linear, matrices[i], views[i].rows);
    ++i;
  }
  step.student.divide_norm(*linears.begin() == Linear::q, scales);
  divide_gram(gram, scales);
}

void LayerEditor::round_inputs(Step& step, std::initializer_list<Linear> linears, InputStatistics& inputs) {
  linalg::Matrix gram = inputs.mean_gram(pool_);
  fold_scales(step, linears, gram, inputs.magnitudes);
  for (const Linear linear : linears) round_linear(step, linear, &gram);
}

void LayerEditor::round_linear(Step& step, Linear linear, const linalg::Matrix* gram) {
  const WeightView weight = weights_of(step.student.weights(), linear).weight;
  if (!rounds(weight.cols)) return;
  const std::vector<float> floats = floats_of(weight);
  const RoundOptions options = round_options(step);
  const bool gptq = gram != nullptr && plan_.quantize->rounding == Rounding::gptq;
  const RoundedMatrix nearest = round_nearest(floats, weight.rows, weight.cols, options, gram, pool_);
  EditError error{.layer = step.layer, .edit = "quantize", .module = std::string(module_of(linear))};
  const auto share = [](const RoundedMatrix& m) { return m.energy > 0 ? m.error / m.energy : 0.0; };
  error.before = error.after = error.held_out_before = error.held_out_after = share(nearest);
  if (gptq) {
    const RoundedMatrix rounded = round_gptq(floats, weight.rows, weight.cols, *gram, options, pool_);
    error.after = error.held_out_after = share(rounded);
    error.damping = options.damping;
    step.student.set_rounded(linear, rounded);
  } else {
    step.student.set_rounded(linear, nearest);
  }
  step.errors.push_back(std::move(error));
}

}  // namespace modicum::retrofit
