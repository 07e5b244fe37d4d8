// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <optional>

#include <modicum/retrofit/low_rank.hpp>

#include "layer_editor.hpp"
#include "standard_form.hpp"

namespace modicum::retrofit {
namespace {

/// Of [rows, cols] matrices whose two factors hold `keep` of their parameters.
std::size_t rank_of(std::size_t rows, std::size_t cols, double keep) {
  const double rank = keep * static_cast<double>(rows * cols) / static_cast<double>(rows + cols);
  return std::clamp<std::size_t>(static_cast<std::size_t>(rank), 1, std::min(rows, cols));
}

bool factored(const LowRankEdit& edit, Linear linear) {
  return std::any_of(edit.modules.begin(), edit.modules.end(),
                     [&](const std::string& kind) { return module_of(linear).ends_with("." + kind); });
}

}  // namespace

std::map<std::string, std::size_t> low_rank_modules(const ModelConfig& config, const Plan& plan) {
  std::map<std::string, std::size_t> ranks;
  if (!plan.low_rank) return ranks;
  const ModelConfig planned = planned_config(config, plan);
  for (std::size_t layer = 0; layer < planned.num_hidden_layers; ++layer) {
    for (const Linear linear : kLinears) {
      if (!factored(*plan.low_rank, linear)) continue;
      const auto [rows, cols] = shape_of(planned, linear);
      ranks["model.layers." + std::to_string(layer) + "." + std::string(module_of(linear))] =
          rank_of(rows, cols, plan.low_rank->keep);
    }
  }
  return ranks;
}

void LayerEditor::factor(Step& step) {
  const auto needs = [&](std::initializer_list<Linear> linears) {
    return std::any_of(linears.begin(), linears.end(),
                       [&](Linear linear) { return factored(*plan_.low_rank, linear); });
  };
  const auto gathered = [&](bool needed, std::size_t inputs) {
    return needed ? std::optional(SecondMoments(inputs, 0, weights_.dtype, chunks_.rows(false)))
                  : std::nullopt;
  };
  auto inputs = gathered(needs({Linear::q, Linear::k, Linear::v}), planned_.hidden_size);
  auto heads = gathered(needs({Linear::o}), planned_.query_width());
  auto ffn_inputs = gathered(needs({Linear::gate, Linear::up}), planned_.hidden_size);
  auto inner = gathered(needs({Linear::down}), planned_.intermediate_size);
  LayerPass pass = pass_of(planned_);
  for (const Chunk& chunk : chunks_.list()) {
    if (chunk.held_out) continue;
    tell(chunk, Phase::factors);
    read_inner(step, pass, chunk);
    if (inputs) inputs->add(pool_, pass.attention_input.data(), nullptr, chunk.rows);
    if (heads) heads->add(pool_, pass.heads.data(), nullptr, chunk.rows);
    if (ffn_inputs) ffn_inputs->add(pool_, pass.ffn_input.data(), nullptr, chunk.rows);
    if (inner) inner->add(pool_, pass.inner.data(), nullptr, chunk.rows);
  }
  for (auto* const moments : {&inputs, &heads, &ffn_inputs, &inner}) {
    if (*moments) (*moments)->finish(pool_);
  }
  for (const Linear linear : kLinears) {
    if (!factored(*plan_.low_rank, linear)) continue;
    const SecondMoments& of = linear == Linear::o                              ? *heads
                              : linear == Linear::down                         ? *inner
                              : linear == Linear::gate || linear == Linear::up ? *ffn_inputs
                                                                               : *inputs;
    const WeightView weight = weights_of(step.student.weights(), linear).weight;
    const std::size_t rank = rank_of(weight.rows, weight.cols, plan_.low_rank->keep);
    const LowRank factors = low_rank(widened(weight), of.moments().gram, rank, 1e-6);
    step.student.set_factors(linear, factors.u, factors.v);
    step.errors.push_back({.layer = step.layer,
                           .edit = "low_rank",
                           .module = std::string(module_of(linear)),
                           .before = 1.0,
                           .after = factors.loss,
                           .held_out_before = 1.0,
                           .held_out_after = factors.loss});
  }
}

}  // namespace modicum::retrofit
