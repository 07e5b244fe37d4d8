// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "attention_block.hpp"

namespace modicum::ops {

/// Memory for the states and packed queries of a block's rows, 16 at a time.
class LaneMemory {
 public:
  void prepare(std::size_t rows, std::size_t head_dim) {
    const std::size_t lanes = (rows + 15) / 16;
    const std::size_t need = lanes * 16 * head_dim * sizeof(float);
    states_.resize(std::max(states_.size(), lanes));
    if (sums_bytes_ < need) {
      sums_.reset(static_cast<float*>(::operator new(need, std::align_val_t{cpu::kAlignment})));
      sums_bytes_ = need;
    }
    for (std::size_t i = 0; i < lanes; ++i) {
      states_[i].o = sums_.get() + i * 16 * head_dim;
      states_[i].used = std::min<std::size_t>(16, rows - i * 16);
    }
  }
  static void clear(cpu::QueryLanes& state, std::size_t head_dim) {
    std::fill_n(state.most, 16, cpu::kNothingSeen);
    std::fill_n(state.sum, 16, 0.0f);
    std::fill_n(state.o, 16 * head_dim, 0.0f);
  }
  cpu::QueryLanes& operator[](std::size_t i) { return states_[i]; }

 private:
  struct Free {
    void operator()(float* p) const { ::operator delete(p, std::align_val_t{cpu::kAlignment}); }
  };
  std::vector<cpu::QueryLanes> states_;
  std::unique_ptr<float[], Free> sums_;
  std::size_t sums_bytes_ = 0;
};

/// Attention of bf16 keys and values with 16 rows at a time.
class LaneAttention {
 public:
  explicit LaneAttention(const AttentionBlock& block)
      : block_(block),
        kernels_(*cpu::kernels().lanes),
        lanes_((block.rows() + 15) / 16),
        space_(workspace()) {}

  /// The whole block.
  void run() {
    kernels_.enter();
    pack();
    const std::size_t all = block_.chunks();
    space_.total.prepare(block_.rows(), head_dim());
    space_.part.prepare(block_.rows(), head_dim());
    for (std::size_t c = first_chunk(); c < all; ++c) {
      chunk(c, c == first_chunk() ? space_.total : space_.part);
      if (c != first_chunk()) merge(space_.total, space_.part);
    }
    write(space_.total);
    kernels_.leave();
  }

  /// Chunk c alone, to `to`.
  void run_chunk(std::size_t c, LaneMemory& to) {
    kernels_.enter();
    pack();
    to.prepare(block_.rows(), head_dim());
    chunk(c, to);
    kernels_.leave();
  }

  /// Merges `chunks`, one after another from the first that is seen, and writes the result.
  void finish(std::span<LaneMemory> chunks) {
    for (std::size_t c = first_chunk() + 1; c < chunks.size(); ++c) merge(chunks[first_chunk()], chunks[c]);
    write(chunks[first_chunk()]);
  }

 private:
  /// What one thread needs for one task; kept between tasks.
  struct Workspace {
    cpu::LaneTile tile;
    alignas(cpu::kAlignment) float scores[ops::kKeyTile * 16];
    alignas(cpu::kAlignment) float other_scores[ops::kKeyTile * 16];
    LaneMemory total, part;
    std::vector<cpu::LaneTile> packed;  ///< aligned room for queries: [origin][lanes][16 · head_dim]
  };

  static Workspace& workspace() {
    thread_local std::unique_ptr<Workspace> own = std::make_unique<Workspace>();
    return *own;
  }

  std::size_t head_dim() const { return block_.shape.head_dim; }
  /// The same for every row, so that a window's rows agree on where sums begin: 0.
  std::size_t first_chunk() const { return 0; }

  bf16* packed(std::size_t origin, std::size_t lanes) {
    return reinterpret_cast<bf16*>(space_.packed.data()) + (origin * lanes_ + lanes) * 16 * head_dim();
  }

  void pack() {
    const std::size_t bytes = block_.q.size() * lanes_ * 16 * head_dim() * sizeof(bf16);
    const std::size_t need = (bytes + sizeof(cpu::LaneTile) - 1) / sizeof(cpu::LaneTile);
    if (space_.packed.size() < need) space_.packed.resize(need);
    for (std::size_t i = 0; i < block_.q.size(); ++i) {
      const float* rows[16] = {};
      std::size_t lane = 0;
      const auto flush = [&](std::size_t row) {
        if (lane == 0) return;
        kernels_.pack(rows, head_dim(), packed(i, (row - 1) / 16));
        std::fill_n(rows, 16, nullptr);
        lane = 0;
      };
      block_.for_each_query(0, block_.parts.size(), 0, [&](const Part& part, std::size_t n, std::size_t row) {
        for (std::size_t h = 0; h < block_.heads(); ++h) {
          rows[lane++] = block_.q[i].q + block_.offset(part, n) + h * head_dim();
          if (lane == 16) flush(row + h + 1);
        }
      });
      flush(block_.rows());
    }
  }

  void chunk(std::size_t c, LaneMemory& to) {
    for (std::size_t i = 0; i < lanes_; ++i) LaneMemory::clear(to[i], head_dim());
    const std::size_t end = std::min(block_.tiles(), (c + 1) * kChunkTiles);
    for (std::size_t t = c * kChunkTiles; t < end; ++t) {
      block_.walk(t, [&](const KeyTile& tile, std::size_t part_begin, std::size_t part_end, std::size_t row,
                         std::size_t rows) { meet(to, tile, part_begin, part_end, row, rows); });
    }
  }

  void meet(LaneMemory& to, const KeyTile& tile, std::size_t part_begin, std::size_t part_end,
            std::size_t row, std::size_t count) {
    const std::size_t first_lanes = row / 16;
    const std::size_t end_lanes = (row + count + 15) / 16;
    load(tile, end_lanes - first_lanes);
    for (std::size_t i = first_lanes; i < end_lanes; ++i) {
      std::fill_n(to[i].first, 16, 0);
      std::fill_n(to[i].last, 16, 0);
      // Nobody reads what lanes without a row sum up; that they see all keys saves the masks.
      std::fill(to[i].last + to[i].used, to[i].last + 16, static_cast<std::int32_t>(kKeyTile));
    }
    block_.for_each_query(part_begin, part_end, row, [&](const Part& part, std::size_t n, std::size_t at) {
      const auto [first, last] = block_.seen(tile, part.first_position() + n);
      for (std::size_t r = at; r < at + block_.heads(); ++r) {
        to[r / 16].first[r % 16] = static_cast<std::int32_t>(first);
        to[r / 16].last[r % 16] = static_cast<std::int32_t>(std::max(first, last));
      }
    });
    for (std::size_t i = first_lanes; i < end_lanes; ++i) step(to[i], tile, i);
  }

  void load(const KeyTile& tile, std::size_t lanes) {
    if (tile.runs.size() == 1 && tile.count == kKeyTile) {
      // Keys that few rows meet are not worth copying; more rows want them close together.
      return kernels_.load_whole(block_.keys(tile.runs.front()), head_dim(), lanes <= 2, space_.tile);
    }
    std::size_t begin = 0;
    for (const KeyRun& run : tile.runs) {
      kernels_.load(block_.keys(run), head_dim(), begin, space_.tile);
      begin += run.count;
    }
    kernels_.finish(space_.tile, tile.count, head_dim());
  }

  void step(cpu::QueryLanes& state, const KeyTile& tile, std::size_t lanes) {
    const auto keys = static_cast<std::int32_t>(cpu::padded(tile.count, 32));
    bool masked = false;
    bool any = false;
    for (std::size_t lane = 0; lane < state.used; ++lane) {
      masked = masked || state.first[lane] > 0 || state.last[lane] < keys;
      any = any || state.first[lane] < state.last[lane];
    }
    if (!any) return;
    score(tile, lanes, static_cast<std::size_t>(keys));
    kernels_.step(state, space_.tile, tile.count, head_dim(), block_.shape.scale, masked, space_.scores);
  }

  /// Scores of the tile's keys, those of each rotation with the queries' form for it.
  void score(const KeyTile& tile, std::size_t lanes, std::size_t keys) {
    bool first_origin = true;
    block_.for_each_origin(tile, [&](std::size_t origin, std::size_t first, std::size_t last) {
      std::size_t i = 0;
      while (block_.q[i].origin != origin) ++i;
      if (first_origin) {
        kernels_.scores(packed(i, lanes), space_.tile, head_dim(), 0, keys / 16, space_.scores);
      } else {
        kernels_.scores(packed(i, lanes), space_.tile, head_dim(), first / 16, (last + 15) / 16,
                        space_.other_scores);
        std::copy(space_.other_scores + first * 16, space_.other_scores + last * 16,
                  space_.scores + first * 16);
      }
      first_origin = false;
    });
  }

  void merge(LaneMemory& total, LaneMemory& part) {
    for (std::size_t i = 0; i < lanes_; ++i)
      kernels_.merge(total[i], part[i], head_dim(), block_.shape.scale);
  }

  void write(LaneMemory& from) {
    float* rows[16] = {};
    std::size_t lane = 0;
    const auto flush = [&](std::size_t row) {
      if (lane == 0) return;
      kernels_.write(from[(row - 1) / 16], head_dim(), rows);
      std::fill_n(rows, 16, nullptr);
      lane = 0;
    };
    block_.for_each_query(0, block_.parts.size(), 0, [&](const Part& part, std::size_t n, std::size_t row) {
      for (std::size_t h = 0; h < block_.heads(); ++h) {
        rows[lane++] = block_.out + block_.offset(part, n) + h * head_dim();
        if (lane == 16) flush(row + h + 1);
      }
    });
    flush(block_.rows());
  }

  const AttentionBlock& block_;
  const cpu::LaneKernels& kernels_;
  std::size_t lanes_;
  Workspace& space_;
};

}  // namespace modicum::ops
