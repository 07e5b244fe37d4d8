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

/// Asks a pass where its queries look.
struct AttentionProbe {
  std::size_t first_row = 0;    ///< of the pass's rows, those from here on are watched
  std::size_t first_layer = 0;  ///< in these layers: first_layer, first_layer + layer_step, …
  std::size_t layer_step = 1;
  /// Softmax weight by position of the path, summed over rows, heads and layers. The rows must be of one
  /// path.
  std::vector<float> mass = {};
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

  /// Reads nodes that were grown on a tree of this model but not read yet, in one pass: `extend` without the
  /// growing. A node may stand below another of them (with mounted ones between, say) if it comes after it.
  /// Where it throws, the nodes hold nothing and are to be dropped.
  void read(std::span<const Branch> nodes, Matrix* all_hidden = nullptr, const Progress& progress = {},
            AttentionProbe* probe = nullptr) const;

  /// Logits, f32 [branches, vocab_size], of the token after each branch. Throws `InvalidArgument` for a root.
  void logits(std::span<const Branch> branches, std::span<float> out) const;
  /// Logits of rows of hidden states [rows, hidden_size].
  void logits_of(const float* hidden, std::size_t rows, float* out) const;

 private:
  struct Workspace;
  struct Row;
  struct Pass;
  struct Projection;

  void check(const KvTree& tree, std::span<const Extension> extensions) const;
  void run_chunk(const Pass& pass, std::size_t first, std::size_t count) const;
  void run_layer(const Pass& pass, std::size_t layer, std::size_t first, std::size_t count) const;
  void attend(const Pass& pass, std::size_t layer, std::size_t first, std::size_t count) const;
  void watch(const Pass& pass, const ops::AttentionShape& shape, std::span<const ops::RotatedQueries> queries,
             std::size_t first, std::size_t count) const;
  void write_keys(const Pass& pass, std::size_t layer, std::size_t first, std::size_t count) const;
  void feed_forward(const LayerWeights& layer, std::size_t count) const;
  void project(const float* x, std::size_t count, std::size_t cols,
               std::span<const Projection> projections) const;
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
