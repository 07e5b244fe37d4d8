// SPDX-License-Identifier: Apache-2.0
#include "layer_pass.hpp"

#include <algorithm>
#include <cmath>

#include <modicum/ops/attention.hpp>
#include <modicum/ops/elementwise.hpp>

#include "../model/rope_angles.hpp"

namespace modicum {

LayerPass::LayerPass(const ModelConfig& config, DType dtype, std::size_t sequences, std::size_t length,
                     ThreadPool& pool)
    : config_(config),
      dtype_(dtype),
      length_(length),
      pool_(pool),
      tree_(KvArena({.layers = 1, .width = config.kv_width(), .dtype = dtype})) {
  const std::size_t rows = sequences * length;
  for (Floats* const floats : {&attention_input, &middle, &ffn_input, &out}) {
    floats->resize(rows * config.hidden_size);
  }
  q.resize(rows * config.query_width());
  heads.resize(rows * config.query_width());
  k.resize(rows * config.kv_width());
  v.resize(rows * config.kv_width());
  inner.resize(rows * config.intermediate_size);
  gate_.resize(rows * config.intermediate_size);
  const std::vector<TokenId> tokens(length, 0);
  for (std::size_t i = 0; i < sequences; ++i) leaves_.push_back(tree_.grow(tree_.root(), tokens));

  const std::size_t half = config.head_dim / 2;
  std::vector<float> frequencies;
  for (const double f : rope_inverse_frequencies(config.rope, config.head_dim)) {
    frequencies.push_back(static_cast<float>(f));
  }
  cos_.resize(rows * half);
  sin_.resize(rows * half);
  const auto scale = static_cast<float>(config.rope.attention_factor);
  for (std::size_t r = 0; r < rows; ++r) {
    rope_angles(frequencies, r % length, scale, cos_.data() + r * half, sin_.data() + r * half);
  }
}

std::size_t LayerPass::bytes(const ModelConfig& config, std::size_t sequences, std::size_t length) {
  const std::size_t widths = 5 * config.hidden_size + 2 * config.query_width() + 4 * config.kv_width() +
                             3 * config.intermediate_size + config.head_dim;
  return sequences * length * widths * sizeof(float);
}

void LayerPass::project(const LayerWeights& layer, const float* x, std::size_t sequences) {
  rows_ = sequences * length_;
  const auto eps = static_cast<float>(config_.rms_norm_eps);
  ops::rms_norm(pool_, x, layer.input_norm, eps, rows_, attention_input.data());
  const ops::Product products[] = {{layer.q.weight, layer.q.bias_or_null(), q.data(), config_.query_width()},
                                   {layer.k.weight, layer.k.bias_or_null(), k.data(), config_.kv_width()},
                                   {layer.v.weight, layer.v.bias_or_null(), v.data(), config_.kv_width()}};
  ops::matmul(pool_, attention_input.data(), rows_, config_.hidden_size, products, scratch_);
  if (layer.q_norm.empty()) return;
  ops::rms_norm(pool_, q.data(), layer.q_norm, eps, rows_ * config_.num_attention_heads, q.data());
  ops::rms_norm(pool_, k.data(), layer.k_norm, eps, rows_ * config_.num_key_value_heads, k.data());
}

void LayerPass::write_keys() {
  const std::size_t width = config_.kv_width();
  dispatch(dtype_, [&](auto tag) {
    using T = decltype(tag);
    pool_.run(rows_ / length_, [&](std::size_t s) {
      for (std::size_t i = 0; i < length_; ++i) {
        const auto [key, value] = leaves_[s].write_row(0, i);
        const std::size_t at = (s * length_ + i) * width;
        for (std::size_t c = 0; c < width; ++c) {
          reinterpret_cast<T*>(key)[c] = from_f32<T>(k[at + c]);
          reinterpret_cast<T*>(value)[c] = from_f32<T>(v[at + c]);
        }
      }
    });
  });
}

void LayerPass::attend(std::size_t window) {
  ops::rope(pool_, k.data(), rows_, config_.num_key_value_heads, config_.head_dim, config_.kv_width(),
            cos_.data(), sin_.data());
  ops::rope(pool_, q.data(), rows_, config_.num_attention_heads, config_.head_dim, config_.query_width(),
            cos_.data(), sin_.data());
  write_keys();
  const ops::AttentionShape shape{.heads = config_.num_attention_heads,
                                  .kv_heads = config_.num_key_value_heads,
                                  .head_dim = config_.head_dim,
                                  .kv_dtype = dtype_,
                                  .layer = 0,
                                  .window = window,
                                  .scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim))};
  const ops::RotatedQueries queries[] = {{0, q.data()}};
  std::vector<std::vector<const ops::KeyTile*>> tiles;
  std::vector<ops::QueryGroup> groups;
  for (std::size_t s = 0; s < rows_ / length_; ++s) tiles.push_back(leaves_[s].tiles());
  for (std::size_t s = 0; s < tiles.size(); ++s) {
    groups.push_back({.row = s * length_, .count = length_, .position = 0, .tiles = tiles[s]});
  }
  ops::attention(pool_, shape, queries, groups, heads.data());
}

void LayerPass::close_attention(const LayerWeights& layer, const float* x) {
  std::copy_n(x, rows_ * config_.hidden_size, middle.data());
  const ops::Product product[] = {
      {layer.o.weight, layer.o.bias_or_null(), middle.data(), config_.hidden_size, true}};
  ops::matmul(pool_, heads.data(), rows_, config_.query_width(), product, scratch_);
}

void LayerPass::open_ffn(const LayerWeights& layer) {
  const std::size_t width = config_.intermediate_size;
  const auto eps = static_cast<float>(config_.rms_norm_eps);
  ops::rms_norm(pool_, middle.data(), layer.post_attention_norm, eps, rows_, ffn_input.data());
  const ops::Product products[] = {{layer.gate.weight, layer.gate.bias_or_null(), inner.data(), width},
                                   {layer.up.weight, layer.up.bias_or_null(), gate_.data(), width}};
  ops::matmul(pool_, ffn_input.data(), rows_, config_.hidden_size, products, scratch_);
  ops::silu_mul(pool_, inner.data(), gate_.data(), rows_ * width);
}

void LayerPass::close_ffn(const LayerWeights& layer) {
  std::copy_n(middle.data(), rows_ * config_.hidden_size, out.data());
  const ops::Product product[] = {
      {layer.down.weight, layer.down.bias_or_null(), out.data(), config_.hidden_size, true}};
  ops::matmul(pool_, inner.data(), rows_, config_.intermediate_size, product, scratch_);
}

void LayerPass::run(const LayerWeights& layer, std::size_t window, const float* x, std::size_t sequences) {
  project(layer, x, sequences);
  attend(window);
  close_attention(layer, x);
  open_ffn(layer);
  close_ffn(layer);
}

}  // namespace modicum
