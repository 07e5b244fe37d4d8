// SPDX-License-Identifier: Apache-2.0
#include <modicum/ops/attention.hpp>

#include "attention_block.hpp"
#include "attention_lanes.hpp"
#include "attention_rows.hpp"

namespace modicum::ops {
namespace {

/// Too few blocks for the threads, over many keys: chunks of keys are tasks of their own, merged at the end.
void attend_by_chunks(ThreadPool& pool, std::span<const AttentionBlock> blocks) {
  std::size_t chunks = 0;
  for (const AttentionBlock& block : blocks) chunks = std::max(chunks, block.chunks());
  std::vector<LaneMemory> parts(blocks.size() * chunks);
  pool.run(parts.size(), [&](std::size_t task) {
    const AttentionBlock& block = blocks[task / chunks];
    const std::size_t c = task % chunks;
    if (c < block.chunks()) LaneAttention(block).run_chunk(c, parts[task]);
  });
  pool.run(blocks.size(), [&](std::size_t i) {
    const auto own = std::span(parts).subspan(i * chunks, blocks[i].chunks());
    LaneAttention(blocks[i]).finish(own);
  });
}

}  // namespace

void attention(ThreadPool& pool, const AttentionShape& shape, std::span<const RotatedQueries> q,
               std::span<const QueryGroup> groups, float* out) {
  const auto parts = split_into_blocks(groups);
  std::vector<AttentionBlock> blocks;
  for (const auto& part : parts) {
    for (std::size_t head = 0; head < shape.kv_heads; ++head) blocks.push_back({shape, q, part, head, out});
  }
  const bool lanes =
      cpu::kernels().lanes != nullptr && shape.kv_dtype == DType::bf16 && shape.head_dim % 32 == 0;
  if (lanes && blocks.size() < 4 * pool.size() && blocks.front().chunks() > 1) {
    return attend_by_chunks(pool, blocks);
  }
  pool.run(blocks.size(),
           [&](std::size_t i) { lanes ? LaneAttention(blocks[i]).run() : RowAttention(blocks[i]).run(); });
}

}  // namespace modicum::ops
