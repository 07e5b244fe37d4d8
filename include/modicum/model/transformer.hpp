// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include <modicum/base/progress.hpp>
#include <modicum/base/thread_pool.hpp>
#include <modicum/io/model_config.hpp>
#include <modicum/kv/tree.hpp>
#include <modicum/model/weights.hpp>
#include <modicum/tensor/matrix.hpp>

namespace modicum {

/// Tokens to be read after a prefix.
struct Extension {
  Branch parent;
  std::span<const TokenId> tokens;
};

/// The forward pass of a decoder-only transformer of the Llama kind over a tree of keys and values. `extend`
/// is the only way to run it: prefill, decoding, a beam step and a speculated subtree differ in their
/// extensions alone.
///
/// A token's result is bit-identical whatever else is in the batch, however its prefix was split into
/// extensions or mapped from a file, and whatever the number of threads (for one instruction set). Safe to
/// call from several threads, which take turns.
class Transformer {
 public:
  Transformer(ModelConfig config, ModelWeights weights, std::size_t threads = 0);
  ~Transformer();

  const ModelConfig& config() const noexcept { return config_; }
  DType dtype() const noexcept { return weights_.dtype; }
  const ModelWeights& weights() const noexcept { return weights_; }
  ThreadPool& pool() const noexcept { return pool_; }
  KvShape kv_shape() const;

  /// An empty tree for this model. `max_kv_bytes` bounds its keys and values; 0: unbounded.
  KvTree tree(std::size_t max_kv_bytes = 0) const;

  /// Reads every extension and returns its new leaf, in order. Where `all_hidden` is given, it becomes
  /// [all tokens of all extensions, hidden_size]: the model's output at each, before the head. Throws
  /// `ContextOverflow` before any work where a path would be longer than max_position_embeddings,
  /// `InvalidArgument` for a token outside the vocabulary or an empty extension, `OutOfMemory`, and
  /// `Cancelled`; the tree is then as it was.
  std::vector<Branch> extend(const KvTree& tree, std::span<const Extension> extensions,
                             Matrix* all_hidden = nullptr, const Progress& progress = {}) const;

  /// Logits, f32 [branches, vocab_size], of the token after each branch. Throws `InvalidArgument` for a root.
  void logits(std::span<const Branch> branches, std::span<float> out) const;
  /// Logits of rows of hidden states [rows, hidden_size].
  void logits_of(const float* hidden, std::size_t rows, float* out) const;

 private:
  struct Workspace;
  struct Row;
  struct Pass;

  void check(const KvTree& tree, std::span<const Extension> extensions) const;
  void run_chunk(const Pass& pass, std::size_t first, std::size_t count) const;
  void run_layer(const Pass& pass, std::size_t layer, std::size_t first, std::size_t count) const;
  void attend(const Pass& pass, std::size_t layer, std::size_t first, std::size_t count) const;
  void write_keys(const Pass& pass, std::size_t layer, std::size_t first, std::size_t count) const;
  void feed_forward(const LayerWeights& layer, std::size_t count) const;
  void fill_angles(const Pass& pass, std::size_t origin, std::size_t first, std::size_t count, float* cos,
                   float* sin) const;

  ModelConfig config_;
  ModelWeights weights_;
  std::vector<float> inverse_frequencies_;
  mutable ThreadPool pool_;
  mutable std::mutex mutex_;
  std::unique_ptr<Workspace> work_;
};

}  // namespace modicum
