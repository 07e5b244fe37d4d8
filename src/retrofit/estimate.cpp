// SPDX-License-Identifier: Apache-2.0
#include "estimate.hpp"

#include <algorithm>

#include <modicum/retrofit/ffn_refine.hpp>
#include <modicum/statistics/moments.hpp>

#include "chunks.hpp"
#include "layer_editor.hpp"
#include "../statistics/layer_pass.hpp"
#include "packed_linear.hpp"
#include "standard_form.hpp"

namespace modicum::retrofit {
namespace {

/// What a process holds before any work: code, the thread pool's stacks, allocators' reserves.
constexpr std::uint64_t kBase = std::uint64_t{96} << 20;

std::uint64_t layer_parameters(const ModelConfig& c) {
  std::uint64_t sum = 0;
  for (const Linear linear : kLinears) {
    const auto [rows, cols] = shape_of(c, linear);
    sum += rows * cols;
  }
  return sum;
}

/// The largest fit of the plan: its inputs, or 0 without any.
std::size_t largest_fit(const ModelConfig& c, const Plan& plan) {
  if (!plan.needs_text()) return 0;
  const bool inner = plan.ffn || plan.depth || plan.quantize || plan.low_rank;
  return inner ? std::max(c.intermediate_size, c.query_width()) : std::max(c.hidden_size, c.query_width());
}

bool alternates(const Plan& plan) {
  return (plan.ffn && plan.ffn->refit == Refit::alternating) ||
         (plan.depth && plan.depth->refit == Refit::alternating);
}

/// What `refine_ffn` takes: activations that it keeps, copies of the matrices, and the fit of the last.
std::uint64_t refine_bytes(const ModelConfig& c) {
  const std::uint64_t inner = c.intermediate_size;
  return RefineOptions{}.memory + 14 * inner * c.hidden_size * sizeof(float) +
         3 * inner * inner * sizeof(double);
}

std::uint64_t out_bytes(const Checkpoint& from, const Plan& plan) {
  const ModelConfig& c = from.config();
  const ModelConfig planned = planned_config(c, plan);
  std::uint64_t bytes = 0;
  for (const std::string& name : from.names()) bytes += from.info(name).bytes();
  const std::uint64_t size = safetensors_bits(from.info("model.layers.0.self_attn.q_proj.weight").dtype) / 8;
  bytes -= c.num_hidden_layers * layer_parameters(c) * size;
  bytes += planned.num_hidden_layers * layer_parameters(planned) * size;
  for (const QuantizedModule& module : quantized_modules(c, plan)) {
    for (const Linear linear : kLinears) {
      if (!module.name.ends_with(module_of(linear))) continue;
      const auto [rows, cols] = shape_of(planned, linear);
      const std::uint64_t groups = module.group == 0 ? 1 : cols / module.group;
      bytes -= rows * cols * size;
      bytes += rows * cols * module.bits / 8 + rows * groups * size + (module.group == 0 ? 0 : 16);
    }
  }
  for (const auto& [name, rank] : low_rank_modules(c, plan)) {
    for (const Linear linear : kLinears) {
      if (!name.ends_with(module_of(linear))) continue;
      const auto [rows, cols] = shape_of(planned, linear);
      bytes -= rows * cols * size;
      bytes += rank * (rows + cols) * size;
    }
  }
  if (plan.quantize && plan.quantize->head_bits) {
    const std::uint64_t weights = c.vocab_size * c.hidden_size;
    const std::uint64_t groups = plan.quantize->group == 0 ? c.hidden_size : plan.quantize->group;
    if (from.contains("lm_head.weight")) bytes -= weights * size;
    bytes += weights * *plan.quantize->head_bits / 8 + weights / groups * size +
             (plan.quantize->group == 0 ? 0 : 16);
  }
  return bytes;
}

}  // namespace

RunEstimate estimate_run(const Checkpoint& from, const Plan& plan, const CalibrationTokens& calibration) {
  const ModelConfig& c = from.config();
  RunEstimate e;
  for (const std::string& name : from.names()) e.in_bytes += from.info(name).bytes();
  e.out_bytes = out_bytes(from, plan);
  e.memory_bytes = kBase;
  const std::uint64_t layer = layer_parameters(c);
  if (plan.quantize && plan.quantize->head_bits) e.memory_bytes += 2 * c.vocab_size * c.hidden_size;
  e.disk_bytes = e.out_bytes;
  if (!plan.needs_text()) {
    e.memory_bytes += layer * 8;
    return e;
  }
  const Chunks chunks(calibration);
  const std::uint64_t rows = chunks.all_rows();
  const std::uint64_t n = largest_fit(c, plan);
  const DType dtype =
      from.info("model.layers.0.self_attn.q_proj.weight").dtype == "BF16" ? DType::bf16 : DType::f32;
  const std::uint64_t moments = SecondMoments::bytes(n, c.hidden_size, dtype, chunks.rows(false)) +
                                SecondMoments::bytes(n, c.hidden_size, dtype, chunks.rows(true));
  // Beside the moments of a fit: the factor and the inverse of its Gram matrix, the fit and its products.
  const std::uint64_t fit = moments + (2 * n * n + 6 * n * c.hidden_size) * sizeof(double);
  const std::uint64_t solve = alternates(plan) ? std::max(fit, refine_bytes(planned_config(c, plan))) : fit;
  // Of a layer: the new weights as they are stored, and one matrix in f64 and f32 beside.
  const std::uint64_t weights = layer * 4 + c.intermediate_size * c.hidden_size * 24;
  e.memory_bytes += 2 * LayerPass::bytes(c, chunks.sequences(), chunks.length()) + solve + weights;
  // Two streams of hidden states before a layer and two after it, and two of targets.
  e.disk_bytes += 6 * rows * c.hidden_size * sizeof(float);
  const double forwards = 1 + 1 + (plan.kv ? 0.6 : 0) + (plan.ffn || plan.depth ? 1 : 0) +
                          (plan.quantize ? 2 : 0) + (plan.low_rank ? 1 : 0) + (alternates(plan) ? 20 : 0);
  const auto layers = static_cast<double>(c.num_hidden_layers);
  const auto inputs = static_cast<double>(n);
  e.pass_operations =
      layers * static_cast<double>(rows) * (forwards * static_cast<double>(layer) + inputs * inputs);
  e.solve_operations = layers * (plan.ffn ? 4.0 : 2.5) * inputs * inputs * inputs;
  return e;
}

}  // namespace modicum::retrofit
