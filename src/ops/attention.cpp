// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <memory>

#include <modicum/ops/attention.hpp>

#include "../cpu/kernels.hpp"

namespace modicum::ops {
namespace {

using cpu::SoftmaxRow;

/// Query tokens that one task takes through all tiles. With g heads a key head, a tile of 64 keys that was
/// widened to f32 once serves 32 g rows, and their running sums stay in the second-level cache.
constexpr std::size_t kBlockTokens = 32;

/// Consecutive queries of one group within a block.
struct Part {
  const QueryGroup* group = nullptr;
  std::size_t first = 0;  ///< query of the group
  std::size_t count = 0;
};

/// What one thread needs for one task; kept between tasks.
struct Workspace {
  cpu::TileBuffer tile;
  std::vector<SoftmaxRow> rows;
  std::vector<float> sums;  ///< with room to align
  float* o = nullptr;

  void prepare(std::size_t count, std::size_t width) {
    if (rows.size() < count) rows.resize(count);
    const std::size_t need = count * width + cpu::kAlignment / sizeof(float);
    if (sums.size() < need) sums.resize(need);
    o = reinterpret_cast<float*>(cpu::padded(reinterpret_cast<std::uintptr_t>(sums.data()), cpu::kAlignment));
    std::fill_n(o, count * width, 0.0f);
  }
};

Workspace& workspace() {
  thread_local std::unique_ptr<Workspace> own = std::make_unique<Workspace>();
  return *own;
}

/// Blocks of at most kBlockTokens queries, in order; a block may hold queries of several groups.
std::vector<std::vector<Part>> split_into_blocks(std::span<const QueryGroup> groups) {
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

/// One key head and one block of queries, over all tiles.
class BlockAttention {
 public:
  BlockAttention(const AttentionShape& shape, std::span<const RotatedQueries> q,
                 const std::vector<Part>& parts, std::size_t kv_head, float* out)
      : shape_(shape), q_(q), parts_(parts), kv_head_(kv_head), out_(out), space_(workspace()) {}

  void run() {
    start_rows();
    std::size_t tiles = 0;
    for (const Part& part : parts_) tiles = std::max(tiles, last_position(part) / kKeyTile + 1);
    for (std::size_t t = 0; t < tiles; ++t) walk(t);
    finish_rows();
  }

 private:
  std::size_t group_size() const { return shape_.heads / shape_.kv_heads; }
  static std::size_t last_position(const Part& part) {
    return part.group->position + part.first + part.count - 1;
  }

  void start_rows() {
    std::size_t tokens = 0;
    for (const Part& part : parts_) tokens += part.count;
    const std::size_t width = cpu::padded(shape_.head_dim, 16);
    space_.prepare(tokens * group_size(), width);
    for (std::size_t r = 0; r < tokens * group_size(); ++r) {
      SoftmaxRow& row = space_.rows[r];
      row.o = space_.o + r * width;
      row.most = -INFINITY;
      row.sum = 0.0f;
    }
  }

  /// Tile t of every part; neighbouring parts with the same keys go together.
  void walk(std::size_t t) {
    std::size_t row = 0;
    for (std::size_t i = 0; i < parts_.size();) {
      const KeyTile* tile = tile_of(parts_[i], t);
      std::size_t end = i;
      std::size_t rows = 0;
      while (end < parts_.size() && tile_of(parts_[end], t) == tile) {
        rows += parts_[end].count * group_size();
        ++end;
      }
      if (tile != nullptr) meet(*tile, i, end, row, rows);
      row += rows;
      i = end;
    }
  }

  /// Null where no query of the part sees a key of tile t.
  const KeyTile* tile_of(const Part& part, std::size_t t) const {
    if (t * kKeyTile > last_position(part)) return nullptr;
    const std::size_t first = part.group->position + part.first;
    if (shape_.window != 0 && (t + 1) * kKeyTile + shape_.window <= first + 1) return nullptr;
    return part.group->tiles[t];
  }

  void meet(const KeyTile& tile, std::size_t part_begin, std::size_t part_end, std::size_t row,
            std::size_t count) {
    set_ranges(tile, part_begin, part_end, row);
    load(tile);
    std::size_t begin = 0;
    for (std::size_t i = 0; i < tile.runs.size();) {
      const std::size_t origin = tile.runs[i].origin;
      const std::size_t first = begin;
      for (; i < tile.runs.size() && tile.runs[i].origin == origin; ++i) begin += tile.runs[i].count;
      score(queries_for(origin), part_begin, part_end, row, count, first, begin);
    }
    // Rows that see nothing of this tile must not meet it: their largest score is still −∞.
    for (std::size_t r = row; r < row + count;) {
      std::size_t end = r;
      while (end < row + count && space_.rows[end].first < space_.rows[end].last) ++end;
      if (end > r) cpu::kernels().accumulate(&space_.rows[r], end - r, space_.tile, shape_.head_dim);
      r = end + 1;
    }
  }

  void load(const KeyTile& tile) {
    const std::size_t width = shape_.kv_heads * shape_.head_dim;
    const std::size_t element = size_of(shape_.kv_dtype);
    std::size_t begin = 0;
    for (const KeyRun& run : tile.runs) {
      const std::size_t at =
          shape_.layer * run.layer_stride + (run.first * width + kv_head_ * shape_.head_dim) * element;
      const cpu::KeyRows rows{run.k + at, run.v + at, width, run.count};
      cpu::kernels().load_keys(shape_.kv_dtype, rows, shape_.head_dim, begin, space_.tile);
      begin += run.count;
    }
  }

  const float* queries_for(std::size_t origin) const {
    return std::find_if(q_.begin(), q_.end(), [&](const RotatedQueries& r) { return r.origin == origin; })->q;
  }

  void set_ranges(const KeyTile& tile, std::size_t part_begin, std::size_t part_end, std::size_t row) {
    for (std::size_t i = part_begin; i < part_end; ++i) {
      for (std::size_t n = 0; n < parts_[i].count; ++n) {
        const std::size_t position = parts_[i].group->position + parts_[i].first + n;
        const std::size_t end = std::min<std::size_t>(position + 1, tile.begin + tile.count);
        std::size_t begin = tile.begin;
        if (shape_.window != 0 && position + 1 > shape_.window)
          begin = std::max(begin, position + 1 - shape_.window);
        for (std::size_t h = 0; h < group_size(); ++h, ++row) {
          SoftmaxRow& state = space_.rows[row];
          state.first = static_cast<std::uint32_t>(std::min<std::size_t>(begin - tile.begin, kKeyTile));
          state.last = static_cast<std::uint32_t>(end > tile.begin ? end - tile.begin : 0);
        }
      }
    }
  }

  /// Scores of keys [first, last) of the tile with the queries' form for that rotation. A block of keys may
  /// hold some of another rotation: their scores are put back.
  void score(const float* queries, std::size_t part_begin, std::size_t part_end, std::size_t row,
             std::size_t count, std::size_t first, std::size_t last) {
    SoftmaxRow* rows = &space_.rows[row];
    SoftmaxRow* at = rows;
    for (std::size_t i = part_begin; i < part_end; ++i) {
      for (std::size_t n = 0; n < parts_[i].count; ++n) {
        const std::size_t q_row = parts_[i].group->row + parts_[i].first + n;
        const float* q = queries + (q_row * shape_.heads + kv_head_ * group_size()) * shape_.head_dim;
        for (std::size_t h = 0; h < group_size(); ++h) (at++)->q = q + h * shape_.head_dim;
      }
    }
    if (first == 0) {
      cpu::kernels().scores(rows, count, space_.tile, shape_.head_dim, shape_.scale, 0,
                            static_cast<std::uint32_t>(last));
      return;
    }
    std::vector<float> before(count * first);
    for (std::size_t r = 0; r < count; ++r) std::copy_n(rows[r].p, first, &before[r * first]);
    cpu::kernels().scores(rows, count, space_.tile, shape_.head_dim, shape_.scale,
                          static_cast<std::uint32_t>(first), static_cast<std::uint32_t>(last));
    for (std::size_t r = 0; r < count; ++r) std::copy_n(&before[r * first], first, rows[r].p);
  }

  void finish_rows() {
    std::size_t r = 0;
    for (const Part& part : parts_) {
      for (std::size_t n = 0; n < part.count; ++n) {
        const std::size_t out_row = part.group->row + part.first + n;
        float* out = out_ + (out_row * shape_.heads + kv_head_ * group_size()) * shape_.head_dim;
        for (std::size_t h = 0; h < group_size(); ++h, ++r) {
          const SoftmaxRow& row = space_.rows[r];
          const float inverse = 1.0f / row.sum;
          for (std::size_t d = 0; d < shape_.head_dim; ++d) out[h * shape_.head_dim + d] = row.o[d] * inverse;
        }
      }
    }
  }

  const AttentionShape& shape_;
  std::span<const RotatedQueries> q_;
  const std::vector<Part>& parts_;
  std::size_t kv_head_;
  float* out_;
  Workspace& space_;
};

}  // namespace

void attention(ThreadPool& pool, const AttentionShape& shape, std::span<const RotatedQueries> q,
               std::span<const QueryGroup> groups, float* out) {
  const auto blocks = split_into_blocks(groups);
  pool.run(blocks.size() * shape.kv_heads, [&](std::size_t task) {
    BlockAttention(shape, q, blocks[task / shape.kv_heads], task % shape.kv_heads, out).run();
  });
}

}  // namespace modicum::ops
