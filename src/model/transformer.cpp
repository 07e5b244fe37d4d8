// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <set>
#include <string>

#include <modicum/base/error.hpp>
#include <modicum/model/transformer.hpp>
#include <modicum/ops/attention.hpp>
#include <modicum/ops/attention_mass.hpp>
#include <modicum/ops/elementwise.hpp>
#include <modicum/ops/matmul.hpp>

#include "rope_angles.hpp"

namespace modicum {
namespace {

/// Rows that go through the layers together: enough that reading the weights once more costs little beside
/// the products (at 512 rows, 1024 operations for each weight), few enough that activations stay in the last
/// cache.
constexpr std::size_t kChunkRows = 512;

/// Activations of more rows are given back after a pass: steps need none of them, and beside the keys and
/// values of a short prompt they are not small.
constexpr std::size_t kKeptRows = 64;

/// Linear layers that read the same input: q, k and v.
constexpr std::size_t kMostOfOne = 3;

}  // namespace

/// One token that is being read.
struct Transformer::Row {
  std::size_t leaf = 0;
  std::size_t offset = 0;  ///< within the leaf's node
  std::size_t position = 0;
};

/// One call of `extend`.
struct Transformer::Pass {
  std::span<const Branch> leaves;
  std::vector<std::span<const TokenId>> tokens;  ///< of each leaf's own node
  std::vector<Row> rows;
  std::vector<std::vector<const ops::KeyTile*>> tiles;  ///< by leaf
  std::vector<std::size_t> origins;                     ///< that keys' rotations count from; the first is 0
  Matrix* all_hidden = nullptr;
  const Progress* progress = nullptr;
  AttentionProbe* probe = nullptr;
};

/// A linear layer's output: y = layer(x), or y += layer(x).
struct Transformer::Projection {
  const LinearWeights* layer;
  float* y;
  bool add = false;
};

/// Activations of one chunk; kept so that a step allocates nothing.
struct Transformer::Workspace {
  using Floats = ops::MatmulScratch::Floats;
  Floats x, h, q, k, v, attended;
  Floats gate, up;               ///< where layers of low rank keep them apart
  Floats inner[kMostOfOne];      ///< what is between a layer's two factors
  std::vector<Floats> rotated;   ///< queries by origin beyond the first
  std::vector<Floats> cos, sin;  ///< by origin
  ops::MatmulScratch scratch;

  void prepare(const ModelConfig& c, std::size_t rows, std::size_t origins) {
    const auto grow = [&](Floats& buffer, std::size_t width) {
      if (buffer.size() < rows * width) buffer.resize(rows * width);
    };
    grow(x, c.hidden_size);
    grow(h, c.hidden_size);
    grow(q, c.query_width());
    grow(k, c.kv_width());
    grow(v, c.kv_width());
    grow(attended, c.query_width());
    rotated.resize(origins);
    cos.resize(origins);
    sin.resize(origins);
    for (std::size_t i = 0; i < origins; ++i) {
      grow(cos[i], c.head_dim / 2);
      grow(sin[i], c.head_dim / 2);
      if (i > 0) grow(rotated[i], c.query_width());
    }
  }
};

Transformer::Transformer(ModelConfig config, ModelWeights weights, std::size_t threads)
    : config_(std::move(config)),
      weights_(std::move(weights)),
      pool_(threads),
      work_(std::make_unique<Workspace>()) {
  for (const double f : rope_inverse_frequencies(config_.rope, config_.head_dim)) {
    inverse_frequencies_.push_back(static_cast<float>(f));
  }
}

Transformer::~Transformer() = default;

KvShape Transformer::kv_shape() const {
  return {.layers = config_.num_hidden_layers, .width = config_.kv_width(), .dtype = weights_.dtype};
}

KvTree Transformer::tree(std::size_t max_kv_bytes) const {
  return KvTree(KvArena(kv_shape(), max_kv_bytes));
}

void Transformer::check(const KvTree& tree, std::span<const Extension> extensions) const {
  if (!(tree.shape() == kv_shape())) {
    fail({.op = "extend",
          .what = "tree",
          .expected = "one made by this model",
          .got = "one of another shape"});
  }
  for (const Extension& extension : extensions) {
    if (!extension.parent || extension.tokens.empty()) {
      fail({.op = "extend",
            .what = "extension",
            .expected = "a branch and at least one token",
            .got = extension.parent ? "no token" : "no branch"});
    }
    const std::size_t length = extension.parent.size() + extension.tokens.size();
    if (length > config_.max_position_embeddings) {
      fail<ContextOverflow>(
          {.op = "extend",
           .what = "context",
           .expected = "at most " + std::to_string(config_.max_position_embeddings) + " tokens",
           .got = std::to_string(length),
           .todo = "shorten the text"});
    }
    for (const TokenId token : extension.tokens) {
      if (token < 0 || static_cast<std::size_t>(token) >= config_.vocab_size) {
        fail({.op = "extend",
              .what = "token id",
              .expected = "0 to " + std::to_string(config_.vocab_size - 1),
              .got = std::to_string(token)});
      }
    }
  }
}

std::vector<Branch> Transformer::extend(const KvTree& tree, std::span<const Extension> extensions,
                                        Matrix* all_hidden, const Progress& progress) const {
  check(tree, extensions);
  std::vector<Branch> leaves;
  for (const Extension& extension : extensions)
    leaves.push_back(tree.grow(extension.parent, extension.tokens));
  read(leaves, all_hidden, progress);
  return leaves;
}

void Transformer::read(std::span<const Branch> nodes, Matrix* all_hidden, const Progress& progress,
                       AttentionProbe* probe) const {
  const std::lock_guard lock(mutex_);
  Pass pass;
  pass.leaves = nodes;
  pass.all_hidden = all_hidden;
  pass.progress = &progress;
  pass.probe = probe;
  std::set<std::size_t> origins;
  for (std::size_t leaf = 0; leaf < nodes.size(); ++leaf) {
    pass.tokens.push_back(nodes[leaf].node_tokens());
    pass.tiles.push_back(nodes[leaf].tiles());
    for (const ops::KeyTile* tile : pass.tiles.back()) {
      for (const ops::KeyRun& run : tile->runs) {
        if (run.origin != 0) origins.insert(run.origin);
      }
    }
    const std::size_t begin = nodes[leaf].size() - nodes[leaf].node_size();
    for (std::size_t i = 0; i < pass.tokens.back().size(); ++i) pass.rows.push_back({leaf, i, begin + i});
  }
  pass.origins = {0};
  pass.origins.insert(pass.origins.end(), origins.begin(), origins.end());
  if (all_hidden != nullptr) *all_hidden = Matrix(pass.rows.size(), config_.hidden_size);
  // Queries are kept once for every origin: many origins, fewer rows at a time.
  const std::size_t rows = std::clamp<std::size_t>(8 * kChunkRows / pass.origins.size(), 16, kChunkRows);
  for (std::size_t first = 0; first < pass.rows.size(); first += rows) {
    run_chunk(pass, first, std::min(rows, pass.rows.size() - first));
  }
  if (pass.rows.size() > kKeptRows) *work_ = Workspace{};
  report(progress, "extend", pass.rows.size(), pass.rows.size());
}

void Transformer::run_chunk(const Pass& pass, std::size_t first, std::size_t count) const {
  Workspace& w = *work_;
  w.prepare(config_, count, pass.origins.size());
  std::vector<TokenId> ids(count);
  for (std::size_t r = 0; r < count; ++r) {
    const Row& row = pass.rows[first + r];
    ids[r] = pass.tokens[row.leaf][row.offset];
  }
  ops::gather_rows(weights_.embedding, ids, w.x.data());
  for (std::size_t i = 0; i < pass.origins.size(); ++i) {
    fill_angles(pass, pass.origins[i], first, count, w.cos[i].data(), w.sin[i].data());
  }
  for (std::size_t layer = 0; layer < config_.num_hidden_layers; ++layer) {
    report(*pass.progress, "extend", first + count * layer / config_.num_hidden_layers, pass.rows.size());
    run_layer(pass, layer, first, count);
  }
  const std::size_t width = config_.hidden_size;
  const auto eps = static_cast<float>(config_.rms_norm_eps);
  ops::rms_norm(pool_, w.x.data(), weights_.norm, eps, count, w.h.data());
  for (std::size_t r = 0; r < count; ++r) {
    const Row& row = pass.rows[first + r];
    const float* hidden = w.h.data() + r * width;
    if (pass.all_hidden != nullptr) std::copy_n(hidden, width, pass.all_hidden->row(first + r).data());
    if (row.offset + 1 == pass.tokens[row.leaf].size()) {
      pass.leaves[row.leaf].set_hidden({hidden, hidden + width});
    }
  }
}

void Transformer::run_layer(const Pass& pass, std::size_t layer, std::size_t first, std::size_t count) const {
  Workspace& w = *work_;
  const LayerWeights& weights = weights_.layers[layer];
  const auto eps = static_cast<float>(config_.rms_norm_eps);
  ops::rms_norm(pool_, w.x.data(), weights.input_norm, eps, count, w.h.data());
  const Projection qkv[] = {{&weights.q, w.q.data()}, {&weights.k, w.k.data()}, {&weights.v, w.v.data()}};
  project(w.h.data(), count, config_.hidden_size, qkv);
  if (!weights.q_norm.empty()) {
    ops::rms_norm(pool_, w.q.data(), weights.q_norm, eps, count * config_.num_attention_heads, w.q.data());
    ops::rms_norm(pool_, w.k.data(), weights.k_norm, eps, count * config_.num_key_value_heads, w.k.data());
  }
  write_keys(pass, layer, first, count);
  attend(pass, layer, first, count);
  const Projection o[] = {{&weights.o, w.x.data(), true}};
  project(w.attended.data(), count, config_.query_width(), o);
  ops::rms_norm(pool_, w.x.data(), weights.post_attention_norm, eps, count, w.h.data());
  feed_forward(weights, count);
}

void Transformer::write_keys(const Pass& pass, std::size_t layer, std::size_t first,
                             std::size_t count) const {
  Workspace& w = *work_;
  const std::size_t width = config_.kv_width();
  ops::rope(pool_, w.k.data(), count, config_.num_key_value_heads, config_.head_dim, width, w.cos[0].data(),
            w.sin[0].data());
  dispatch(weights_.dtype, [&](auto t) {
    using T = decltype(t);
    for (std::size_t r = 0; r < count; ++r) {
      const Row& row = pass.rows[first + r];
      const auto [k, v] = pass.leaves[row.leaf].write_row(layer, row.offset);
      for (std::size_t i = 0; i < width; ++i) {
        reinterpret_cast<T*>(k)[i] = from_f32<T>(w.k[r * width + i]);
        reinterpret_cast<T*>(v)[i] = from_f32<T>(w.v[r * width + i]);
      }
    }
  });
}

void Transformer::attend(const Pass& pass, std::size_t layer, std::size_t first, std::size_t count) const {
  Workspace& w = *work_;
  const std::size_t width = config_.query_width();
  std::vector<ops::RotatedQueries> queries{{0, w.q.data()}};
  for (std::size_t i = 1; i < pass.origins.size(); ++i) {
    std::copy_n(w.q.data(), count * width, w.rotated[i].data());
    queries.push_back({pass.origins[i], w.rotated[i].data()});
  }
  for (std::size_t i = 0; i < pass.origins.size(); ++i) {
    ops::rope(pool_, i == 0 ? w.q.data() : w.rotated[i].data(), count, config_.num_attention_heads,
              config_.head_dim, width, w.cos[i].data(), w.sin[i].data());
  }
  std::vector<ops::QueryGroup> groups;
  for (std::size_t r = 0; r < count;) {
    const Row& row = pass.rows[first + r];
    std::size_t end = r;
    while (end < count && pass.rows[first + end].leaf == row.leaf) ++end;
    groups.push_back({.row = r, .count = end - r, .position = row.position, .tiles = pass.tiles[row.leaf]});
    r = end;
  }
  const ops::AttentionShape shape{
      .heads = config_.num_attention_heads,
      .kv_heads = config_.num_key_value_heads,
      .head_dim = config_.head_dim,
      .kv_dtype = weights_.dtype,
      .layer = layer,
      .window = config_.sliding_window.empty() ? 0 : config_.sliding_window[layer],
      .scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim))};
  ops::attention(pool_, shape, queries, groups, w.attended.data());
  if (pass.probe != nullptr) watch(pass, shape, queries, first, count);
}

void Transformer::watch(const Pass& pass, const ops::AttentionShape& shape,
                        std::span<const ops::RotatedQueries> queries, std::size_t first,
                        std::size_t count) const {
  AttentionProbe& probe = *pass.probe;
  if (shape.layer < probe.first_layer || (shape.layer - probe.first_layer) % probe.layer_step != 0) return;
  const std::size_t begin = std::max(first, probe.first_row);
  if (begin >= first + count) return;
  const Row& row = pass.rows[begin];
  const ops::QueryGroup group{.row = begin - first,
                              .count = first + count - begin,
                              .position = row.position,
                              .tiles = pass.tiles[row.leaf]};
  probe.mass.resize(std::max(probe.mass.size(), group.position + group.count));
  ops::attention_mass(pool_, shape, queries, {&group, 1}, probe.mass.data());
}

void Transformer::project(const float* x, std::size_t count, std::size_t cols,
                          std::span<const Projection> projections) const {
  Workspace& w = *work_;
  ops::Product first[kMostOfOne];
  for (std::size_t i = 0; i < projections.size(); ++i) {
    const auto& [layer, y, add] = projections[i];
    if (layer->inner.empty()) {
      first[i] = {layer->weight, layer->bias_or_null(), y, layer->weight.rows, add};
      continue;
    }
    const std::size_t rank = layer->inner.rows;
    if (w.inner[i].size() < count * rank) w.inner[i].resize(count * rank);
    first[i] = {layer->inner, nullptr, w.inner[i].data(), rank};
  }
  ops::matmul(pool_, x, count, cols, std::span(first, projections.size()), w.scratch);
  for (std::size_t i = 0; i < projections.size(); ++i) {
    const auto& [layer, y, add] = projections[i];
    if (layer->inner.empty()) continue;
    const ops::Product second[] = {{layer->weight, layer->bias_or_null(), y, layer->weight.rows, add}};
    ops::matmul(pool_, w.inner[i].data(), count, layer->inner.rows, second, w.scratch);
  }
}

void Transformer::feed_forward(const LayerWeights& layer, std::size_t count) const {
  Workspace& w = *work_;
  if (!layer.gate.inner.empty() || !layer.up.inner.empty() || !layer.down.inner.empty()) {
    const std::size_t inner = config_.intermediate_size;
    for (Workspace::Floats* buffer : {&w.gate, &w.up}) {
      if (buffer->size() < count * inner) buffer->resize(count * inner);
    }
    const Projection both[] = {{&layer.gate, w.gate.data()}, {&layer.up, w.up.data()}};
    project(w.h.data(), count, config_.hidden_size, both);
    ops::silu_mul(pool_, w.gate.data(), w.up.data(), count * inner);
    const Projection down[] = {{&layer.down, w.x.data(), true}};
    project(w.gate.data(), count, inner, down);
    return;
  }
  const ops::SwigluWeights weights{.gate = layer.gate.weight,
                                   .up = layer.up.weight,
                                   .down = layer.down.weight,
                                   .gate_bias = layer.gate.bias_or_null(),
                                   .up_bias = layer.up.bias_or_null(),
                                   .down_bias = layer.down.bias_or_null()};
  ops::swiglu(pool_, w.h.data(), count, weights, w.x.data(), w.scratch);
}

void Transformer::fill_angles(const Pass& pass, std::size_t origin, std::size_t first, std::size_t count,
                              float* cos, float* sin) const {
  const std::size_t half = inverse_frequencies_.size();
  const auto scale = static_cast<float>(config_.rope.attention_factor);
  for (std::size_t r = 0; r < count; ++r) {
    // Before a segment's first token nothing of it is seen, so what stands there does not matter.
    const std::size_t position = pass.rows[first + r].position;
    const std::size_t distance = position >= origin ? position - origin : 0;
    rope_angles(inverse_frequencies_, distance, scale, cos + r * half, sin + r * half);
  }
}

void Transformer::logits_of(const float* hidden, std::size_t rows, float* out) const {
  const std::lock_guard lock(mutex_);
  for (std::size_t first = 0; first < rows; first += kChunkRows) {
    const ops::Product head[] = {
        {weights_.head, nullptr, out + first * config_.vocab_size, config_.vocab_size}};
    ops::matmul(pool_, hidden + first * config_.hidden_size, std::min(kChunkRows, rows - first),
                config_.hidden_size, head, work_->scratch);
  }
}

void Transformer::logits(std::span<const Branch> branches, std::span<float> out) const {
  std::vector<float> hidden(branches.size() * config_.hidden_size);
  for (std::size_t i = 0; i < branches.size(); ++i) {
    if (!branches[i] || branches[i].hidden().size() != config_.hidden_size) {
      fail({.op = "logits",
            .what = "branch",
            .expected = "one that ends in a token that this model read",
            .got = "a branch without",
            .todo = "extend it first"});
    }
    std::copy_n(branches[i].hidden().begin(), config_.hidden_size,
                hidden.begin() + static_cast<std::ptrdiff_t>(i * config_.hidden_size));
  }
  logits_of(hidden.data(), branches.size(), out.data());
}

}  // namespace modicum
