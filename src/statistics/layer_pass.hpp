// SPDX-License-Identifier: Apache-2.0
// One decoder layer over whole sequences, with everything that it computes on its way.
#pragma once

#include <cstddef>
#include <vector>

#include <modicum/base/thread_pool.hpp>
#include <modicum/io/model_config.hpp>
#include <modicum/kv/tree.hpp>
#include <modicum/model/weights.hpp>
#include <modicum/ops/matmul.hpp>

namespace modicum {

/// Reads up to `sequences` sequences of `length` tokens through one layer at a time, by the kernels and in
/// the numbers of `Transformer`. Each step fills what the next one reads; matrices are [rows, width] f32,
/// rows of a sequence after each other.
class LayerPass {
 public:
  using Floats = ops::MatmulScratch::Floats;

  /// `config`: of the layers that will be read (heads and widths may differ from the model's own).
  LayerPass(const ModelConfig& config, DType dtype, std::size_t sequences, std::size_t length,
            ThreadPool& pool);

  std::size_t length() const noexcept { return length_; }
  std::size_t rows() const noexcept { return rows_; }

  /// `attention_input`, `q`, `k` and `v` (before their rotation) of x [sequences · length, hidden_size].
  void project(const LayerWeights& layer, const float* x, std::size_t sequences);
  /// `heads` of them, with keys within `window` (0: all). Rotates q and k in place.
  void attend(std::size_t window);
  /// `middle` = x + what the output projection makes of `heads`.
  void close_attention(const LayerWeights& layer, const float* x);
  /// `ffn_input` and `inner` of `middle`.
  void open_ffn(const LayerWeights& layer);
  /// `out` = `middle` + what the down projection makes of `inner`.
  void close_ffn(const LayerWeights& layer);
  /// All of it.
  void run(const LayerWeights& layer, std::size_t window, const float* x, std::size_t sequences);

  Floats attention_input, q, k, v, heads, middle, ffn_input, inner, out;

  /// Bytes of a pass of this shape.
  static std::size_t bytes(const ModelConfig& config, std::size_t sequences, std::size_t length);

 private:
  void write_keys();

  ModelConfig config_;
  DType dtype_;
  std::size_t length_;
  std::size_t rows_ = 0;
  ThreadPool& pool_;
  KvTree tree_;
  std::vector<Branch> leaves_;  ///< a sequence each; their rows are written again by every pass
  Floats cos_, sin_, gate_;
  ops::MatmulScratch scratch_;
};

}  // namespace modicum
