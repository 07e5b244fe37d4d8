// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <vector>

#include <modicum/ops/attention_mass.hpp>

#include "attention_block.hpp"
#include "attention_rows.hpp"

namespace modicum::ops {
namespace {

/// A row's softmax up to a factor: its largest score and Σ e^(score − most).
struct Softmax {
  float most = -INFINITY;
  float sum = 0.0f;
};

/// Calls body as `RowScores::meet` does, for the tiles of chunk c.
template <class Body>
void meet_chunk(RowScores& scores, const AttentionBlock& block, std::size_t c, const Body& body) {
  const std::size_t end = std::min(block.tiles(), (c + 1) * kChunkTiles);
  for (std::size_t t = c * kChunkTiles; t < end; ++t) scores.meet(t, body);
}

/// Each row's softmax over the keys of chunk c.
std::vector<Softmax> softmax_of_chunk(const AttentionBlock& block, std::size_t c) {
  RowScores scores(block, RowScores::Load::keys);
  meet_chunk(scores, block, c,
             [](cpu::SoftmaxRow* rows, std::size_t count, const cpu::TileBuffer& keys, const KeyTile&) {
               cpu::kernels().accumulate(rows, count, keys, 0);
             });
  std::vector<Softmax> all;
  for (const cpu::SoftmaxRow& row : scores.rows()) all.push_back({row.most, row.sum});
  return all;
}

/// Adds `part` of other keys.
void merge(Softmax& total, const Softmax& part) {
  if (part.sum == 0.0f) return;
  const float most = std::max(total.most, part.most);
  total.sum = total.sum * std::exp(total.most - most) + part.sum * std::exp(part.most - most);
  total.most = most;
}

/// Adds the weights of chunk c's keys, of rows whose softmax over all keys is `all`, to mass.
void add_weights(const AttentionBlock& block, std::size_t c, std::span<const Softmax> all, float* mass) {
  RowScores scores(block, RowScores::Load::keys);
  cpu::SoftmaxRow* const first = scores.rows().data();
  for (std::size_t r = 0; r < all.size(); ++r) first[r].most = all[r].most;
  meet_chunk(scores, block, c,
             [&](cpu::SoftmaxRow* rows, std::size_t count, const cpu::TileBuffer& keys, const KeyTile& tile) {
               cpu::kernels().accumulate(rows, count, keys, 0);
               for (std::size_t r = 0; r < count; ++r) {
                 const float inverse = 1.0f / all[static_cast<std::size_t>(&rows[r] - first)].sum;
                 for (std::size_t j = rows[r].first; j < rows[r].last; ++j)
                   mass[tile.begin + j] += rows[r].p[j] * inverse;
               }
             });
}

}  // namespace

void attention_mass(ThreadPool& pool, const AttentionShape& shape, std::span<const RotatedQueries> q,
                    std::span<const QueryGroup> groups, float* mass) {
  const auto parts = split_into_blocks(groups);
  std::vector<AttentionBlock> blocks;
  std::size_t chunks = 0;
  std::size_t positions = 0;
  for (std::size_t head = 0; head < shape.kv_heads; ++head) {
    for (const auto& part : parts) {
      blocks.push_back({shape, q, part, head, nullptr});
      chunks = std::max(chunks, blocks.back().chunks());
      for (const Part& queries : part) positions = std::max(positions, queries.last_position() + 1);
    }
  }
  std::vector<std::vector<Softmax>> sums(blocks.size() * chunks);
  pool.run(sums.size(),
           [&](std::size_t task) { sums[task] = softmax_of_chunk(blocks[task / chunks], task % chunks); });
  for (std::size_t b = 0; b < blocks.size(); ++b) {
    std::vector<Softmax>& total = sums[b * chunks];
    for (std::size_t c = 1; c < chunks; ++c)
      for (std::size_t r = 0; r < total.size(); ++r) merge(total[r], sums[b * chunks + c][r]);
  }
  std::vector<float> of_heads(shape.kv_heads * positions);
  pool.run(shape.kv_heads * chunks, [&](std::size_t task) {
    const std::size_t head = task / chunks;
    for (std::size_t b = head * parts.size(); b < (head + 1) * parts.size(); ++b)
      add_weights(blocks[b], task % chunks, sums[b * chunks], of_heads.data() + head * positions);
  });
  for (std::size_t head = 0; head < shape.kv_heads; ++head)
    for (std::size_t i = 0; i < positions; ++i) mass[i] += of_heads[head * positions + i];
}

}  // namespace modicum::ops
