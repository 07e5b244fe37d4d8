// SPDX-License-Identifier: Apache-2.0
#include <modicum/ops/attention.hpp>

#include "attention_block.hpp"
#include "attention_lanes.hpp"
#include "attention_rows.hpp"

namespace modicum::ops {
namespace {

/// Too few blocks for the threads, over many keys: chunks of keys are tasks of their own, merged at the end.
/// A task takes all key heads, as they lie beside each other in memory, or fewer where tasks are few.
void attend_by_chunks(ThreadPool& pool, std::span<const AttentionBlock> blocks) {
  const std::size_t kv_heads = blocks.front().shape.kv_heads;
  std::size_t chunks = 0;
  for (const AttentionBlock& block : blocks) chunks = std::max(chunks, block.chunks());
  std::size_t heads = kv_heads;
  const auto tasks = [&] { return blocks.size() / kv_heads * chunks * ((kv_heads + heads - 1) / heads); };
  while (heads > 1 && tasks() < 4 * pool.size()) heads = (heads + 1) / 2;
  const std::size_t tasks_a_chunk = (kv_heads + heads - 1) / heads;

  std::vector<LaneMemory> parts(blocks.size() * chunks);  // [queries][chunk][key head]
  pool.run(tasks(), [&](std::size_t task) {
    const std::size_t head = task % tasks_a_chunk * heads;
    const std::size_t c = task / tasks_a_chunk % chunks;
    const std::size_t queries = task / tasks_a_chunk / chunks;
    const auto own = blocks.subspan(queries * kv_heads + head, std::min(heads, kv_heads - head));
    if (c >= own.front().chunks()) return;
    LaneAttention::run_chunk(own, c,
                             std::span(parts).subspan((queries * chunks + c) * kv_heads + head, own.size()));
  });
  pool.run(blocks.size(), [&](std::size_t i) {
    LaneMemory* const first = &parts[i / kv_heads * chunks * kv_heads + i % kv_heads];
    LaneAttention(blocks[i]).finish(first, kv_heads);
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
