// SPDX-License-Identifier: Apache-2.0
// What the attention of one key head and one block of queries has in common, however its sums are formed.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <modicum/ops/attention.hpp>

#include "../cpu/kernels.hpp"

namespace modicum::ops {

/// Keys are summed in chunks of this many tiles, each from nothing, which are then merged in order: a chunk
/// can be another thread's, and the result does not tell.
inline constexpr std::size_t kChunkTiles = 32;

/// Query tokens that one task takes through all tiles. With g heads a key head, a tile of 64 keys that was
/// made ready once serves 32 g rows, and their running sums stay in the second-level cache.
inline constexpr std::size_t kBlockTokens = 32;

/// Consecutive queries of one group within a block.
struct Part {
  const QueryGroup* group = nullptr;
  std::size_t first = 0;  ///< query of the group
  std::size_t count = 0;

  std::size_t first_position() const { return group->position + first; }
  std::size_t last_position() const { return group->position + first + count - 1; }
};

/// Blocks of at most kBlockTokens queries, in order; a block may hold queries of several groups.
inline std::vector<std::vector<Part>> split_into_blocks(std::span<const QueryGroup> groups) {
  std::vector<std::vector<Part>> blocks;
  std::size_t room = 0;
  for (const QueryGroup& group : groups) {
    for (std::size_t first = 0; first < group.count;) {
      if (room == 0) {
        blocks.emplace_back();
        room = kBlockTokens;
      }
      const std::size_t count = std::min(room, group.count - first);
      blocks.back().push_back({&group, first, count});
      first += count;
      room -= count;
    }
  }
  return blocks;
}

/// One key head and one block of queries. Its rows are the queries in order, each with the heads that share
/// the key head.
struct AttentionBlock {
  const AttentionShape& shape;
  std::span<const RotatedQueries> q;
  std::span<const Part> parts;
  std::size_t kv_head = 0;
  float* out = nullptr;

  std::size_t heads() const { return shape.heads / shape.kv_heads; }
  std::size_t rows() const {
    std::size_t tokens = 0;
    for (const Part& part : parts) tokens += part.count;
    return tokens * heads();
  }
  /// One beyond the last tile that a query sees.
  std::size_t tiles() const {
    std::size_t tiles = 0;
    for (const Part& part : parts) tiles = std::max(tiles, part.last_position() / kKeyTile + 1);
    return tiles;
  }
  std::size_t chunks() const { return (tiles() + kChunkTiles - 1) / kChunkTiles; }

  /// Null where no query of the part sees a key of tile t.
  const KeyTile* tile_of(const Part& part, std::size_t t) const {
    if (t * kKeyTile > part.last_position()) return nullptr;
    if (shape.window != 0 && (t + 1) * kKeyTile + shape.window <= part.first_position() + 1) return nullptr;
    return part.group->tiles[t];
  }

  /// The keys of a tile that the query at `position` sees, counted from the tile's first.
  std::pair<std::uint32_t, std::uint32_t> seen(const KeyTile& tile, std::size_t position) const {
    const std::size_t end = std::min<std::size_t>(position + 1, tile.begin + tile.count);
    std::size_t begin = tile.begin;
    if (shape.window != 0 && position + 1 > shape.window)
      begin = std::max(begin, position + 1 - shape.window);
    return {static_cast<std::uint32_t>(std::min<std::size_t>(begin - tile.begin, kKeyTile)),
            static_cast<std::uint32_t>(end > tile.begin ? end - tile.begin : 0)};
  }

  /// Where a run's keys and values of this head begin.
  cpu::KeyRows keys(const KeyRun& run) const {
    const std::size_t width = shape.kv_heads * shape.head_dim;
    if (run.scales != nullptr) return codes(run, width);
    const std::size_t at = shape.layer * run.layer_stride +
                           (run.first * width + kv_head * shape.head_dim) * size_of(shape.kv_dtype);
    return {.k = run.k + at, .v = run.v + at, .stride = width, .count = run.count};
  }
  cpu::KeyRows codes(const KeyRun& run, std::size_t width) const {
    const KvScales& scales = *run.scales;
    const auto bits = static_cast<std::size_t>(scales.bits);
    const std::size_t at =
        shape.layer * run.layer_stride + (run.first * width + kv_head * shape.head_dim) * bits / 8;
    return {.k = run.k + at,
            .v = run.v + at,
            .stride = width * bits / 8,
            .count = run.count,
            .bits = scales.bits,
            .first = run.first % kKeyGroup,
            .k_scales = scales.k + shape.layer * scales.k_stride + run.first / kKeyGroup * 2 * width +
                        kv_head * shape.head_dim,
            .v_scales = scales.v + shape.layer * scales.v_stride + (run.first * shape.kv_heads + kv_head) * 2,
            .width = width,
            .kv_heads = shape.kv_heads};
  }

  const float* queries_for(std::size_t origin) const {
    return std::find_if(q.begin(), q.end(), [&](const RotatedQueries& r) { return r.origin == origin; })->q;
  }

  /// Of the first head's row of a query, in q and out.
  std::size_t offset(const Part& part, std::size_t n) const {
    return ((part.group->row + part.first + n) * shape.heads + kv_head * heads()) * shape.head_dim;
  }

  /// Calls body(part, n, row) for each query, row being its first head's.
  template <class Body>
  void for_each_query(std::size_t part_begin, std::size_t part_end, std::size_t row, const Body& body) const {
    for (std::size_t i = part_begin; i < part_end; ++i) {
      for (std::size_t n = 0; n < parts[i].count; ++n, row += heads()) body(parts[i], n, row);
    }
  }

  /// Calls meet(tile, part_begin, part_end, row, rows) for tile t of every part that sees it; neighbouring
  /// parts with the same keys go together.
  template <class Meet>
  void walk(std::size_t t, const Meet& meet) const {
    std::size_t row = 0;
    for (std::size_t i = 0; i < parts.size();) {
      const KeyTile* tile = tile_of(parts[i], t);
      std::size_t end = i;
      std::size_t rows = 0;
      while (end < parts.size() && tile_of(parts[end], t) == tile) rows += parts[end++].count * heads();
      if (tile != nullptr) meet(*tile, i, end, row, rows);
      row += rows;
      i = end;
    }
  }

  /// Calls body(origin, first, last) for the tile's keys by the origin of their rotation, in order.
  template <class Body>
  static void for_each_origin(const KeyTile& tile, const Body& body) {
    std::size_t begin = 0;
    for (std::size_t i = 0; i < tile.runs.size();) {
      const std::size_t origin = tile.runs[i].origin;
      const std::size_t first = begin;
      for (; i < tile.runs.size() && tile.runs[i].origin == origin; ++i) begin += tile.runs[i].count;
      body(origin, first, begin);
    }
  }
};

}  // namespace modicum::ops
