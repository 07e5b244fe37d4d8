// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "attention_block.hpp"

namespace modicum::ops {

/// Bytes aligned to kAlignment that grow, without keeping what they held.
class AlignedBytes {
 public:
  template <class T>
  T* room_for(std::size_t count) {
    if (size_ < count * sizeof(T)) {
      data_.reset(
          static_cast<std::byte*>(::operator new(count * sizeof(T), std::align_val_t{cpu::kAlignment})));
      size_ = count * sizeof(T);
    }
    return reinterpret_cast<T*>(data_.get());
  }

 private:
  struct Free {
    void operator()(std::byte* p) const { ::operator delete(p, std::align_val_t{cpu::kAlignment}); }
  };
  std::unique_ptr<std::byte[], Free> data_;
  std::size_t size_ = 0;
};

/// Memory for the states and packed queries of a block's rows, 16 at a time.
class LaneMemory {
 public:
  /// States that have seen nothing.
  void prepare(std::size_t rows, std::size_t head_dim) {
    lanes_ = (rows + 15) / 16;
    head_dim_ = head_dim;
    states_.resize(std::max(states_.size(), lanes_));
    float* const o = sums_.room_for<float>(lanes_ * 16 * head_dim);
    std::fill_n(o, lanes_ * 16 * head_dim, 0.0f);
    for (std::size_t i = 0; i < lanes_; ++i) {
      cpu::QueryLanes& state = states_[i];
      state.o = o + i * 16 * head_dim;
      state.used = std::min<std::size_t>(16, rows - i * 16);
      std::fill_n(state.most, 16, cpu::kNothingSeen);
      std::fill_n(state.sum, 16, 0.0f);
    }
  }
  void make_room_for_queries(std::size_t origins) {
    queries_ = packed_.room_for<bf16>(origins * lanes_ * 16 * head_dim_);
  }
  cpu::QueryLanes& operator[](std::size_t i) { return states_[i]; }
  /// [16 · head_dim] of the i-th lanes, in the form for the keys of an origin.
  bf16* queries(std::size_t origin, std::size_t i) const {
    return queries_ + (origin * lanes_ + i) * 16 * head_dim_;
  }

 private:
  std::size_t lanes_ = 0;
  std::size_t head_dim_ = 0;
  std::vector<cpu::QueryLanes> states_;
  bf16* queries_ = nullptr;
  AlignedBytes sums_, packed_;
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
    for (std::size_t c = first_chunk(); c < block_.chunks(); ++c) {
      LaneMemory& to = c == first_chunk() ? space_.total : space_.part;
      to.prepare(block_.rows(), head_dim());
      if (c == first_chunk()) pack(to);
      for (std::size_t t = c * kChunkTiles; t < end_of(c); ++t) meet(t, space_.total, to);
      if (c != first_chunk()) merge(space_.total, to);
    }
    write(space_.total);
    kernels_.leave();
  }

  /// Chunk c of blocks that differ in their key head alone, to `to`. Memory is read as it lies: a tile's keys
  /// of all these heads, then the next tile's.
  static void run_chunk(std::span<const AttentionBlock> blocks, std::size_t c, std::span<LaneMemory> to) {
    std::vector<LaneAttention> heads(blocks.begin(), blocks.end());
    heads.front().kernels_.enter();
    for (std::size_t i = 0; i < heads.size(); ++i) {
      to[i].prepare(blocks[i].rows(), heads[i].head_dim());
      heads[i].pack(to[i]);
    }
    for (std::size_t t = c * kChunkTiles; t < heads.front().end_of(c); ++t) {
      for (std::size_t i = 0; i < heads.size(); ++i) heads[i].meet(t, to[i], to[i]);
    }
    heads.front().kernels_.leave();
  }

  /// Merges chunks that lie `stride` apart, one after another from the first that is seen, and writes the
  /// result.
  void finish(LaneMemory* chunks, std::size_t stride) {
    LaneMemory& total = chunks[first_chunk() * stride];
    for (std::size_t c = first_chunk() + 1; c < block_.chunks(); ++c) merge(total, chunks[c * stride]);
    write(total);
  }

 private:
  /// What one thread needs for one task; kept between tasks.
  struct Workspace {
    cpu::LaneTile tile;
    alignas(cpu::kAlignment) float scores[ops::kKeyTile * 16];
    alignas(cpu::kAlignment) float other_scores[ops::kKeyTile * 16];
    LaneMemory total, part;
  };

  static Workspace& workspace() {
    thread_local std::unique_ptr<Workspace> own = std::make_unique<Workspace>();
    return *own;
  }

  std::size_t head_dim() const { return block_.shape.head_dim; }
  /// The same for every row, so that a window's rows agree on where sums begin: 0.
  std::size_t first_chunk() const { return 0; }
  std::size_t end_of(std::size_t c) const { return std::min(block_.tiles(), (c + 1) * kChunkTiles); }

  void pack(LaneMemory& to) {
    to.make_room_for_queries(block_.q.size());
    for (std::size_t i = 0; i < block_.q.size(); ++i) {
      const float* rows[16] = {};
      std::size_t lane = 0;
      const auto flush = [&](std::size_t row) {
        if (lane == 0) return;
        kernels_.pack(rows, head_dim(), to.queries(i, (row - 1) / 16));
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

  /// Moves `to` on by tile t, whose keys the queries that `packed` holds meet.
  void meet(std::size_t t, const LaneMemory& packed, LaneMemory& to) {
    block_.walk(t, [&](const KeyTile& tile, std::size_t part_begin, std::size_t part_end, std::size_t row,
                       std::size_t rows) { meet(packed, to, tile, part_begin, part_end, row, rows); });
  }

  void meet(const LaneMemory& packed, LaneMemory& to, const KeyTile& tile, std::size_t part_begin,
            std::size_t part_end, std::size_t row, std::size_t count) {
    const std::size_t first_lanes = row / 16;
    const std::size_t end_lanes = (row + count + 15) / 16;
    for (std::size_t i = first_lanes; i < end_lanes; ++i) {
      std::fill_n(to[i].first, 16, 0);
      std::fill_n(to[i].last, 16, 0);
      // Nobody reads what lanes without a row sum up; that they see all keys saves the masks.
      std::fill(to[i].last + to[i].used, to[i].last + 16, static_cast<std::int32_t>(kKeyTile));
    }
    std::uint32_t keys = 0;
    block_.for_each_query(part_begin, part_end, row, [&](const Part& part, std::size_t n, std::size_t at) {
      const auto [first, last] = block_.seen(tile, part.first_position() + n);
      keys = std::max(keys, last);
      for (std::size_t r = at; r < at + block_.heads(); ++r) {
        to[r / 16].first[r % 16] = static_cast<std::int32_t>(first);
        to[r / 16].last[r % 16] = static_cast<std::int32_t>(std::max(first, last));
      }
    });
    load(tile, keys, end_lanes - first_lanes);
    for (std::size_t i = first_lanes; i < end_lanes; ++i) step(packed, to[i], tile, keys, i);
  }

  /// The tile's first `count` keys, as many as are seen: those behind them may not have been written yet, and
  /// even a weight of 0 makes a NaN of what lies there by chance.
  void load(const KeyTile& tile, std::uint32_t count, std::size_t lanes) {
    if (tile.runs.size() == 1 && count == kKeyTile) {
      // Keys that few rows meet are not worth copying; more rows want them close together.
      return kernels_.load_whole(block_.keys(tile.runs.front()), head_dim(), lanes <= 2, space_.tile);
    }
    std::size_t begin = 0;
    for (KeyRun run : tile.runs) {
      if (begin >= count) break;
      run.count = std::min(run.count, static_cast<std::uint32_t>(count - begin));
      kernels_.load(block_.keys(run), head_dim(), begin, space_.tile);
      begin += run.count;
    }
    kernels_.finish(space_.tile, count, head_dim());
  }

  void step(const LaneMemory& packed, cpu::QueryLanes& state, const KeyTile& tile, std::uint32_t count,
            std::size_t lanes) {
    const auto keys = static_cast<std::int32_t>(cpu::padded(count, 32));
    bool masked = false;
    bool any = false;
    for (std::size_t lane = 0; lane < state.used; ++lane) {
      masked = masked || state.first[lane] > 0 || state.last[lane] < keys;
      any = any || state.first[lane] < state.last[lane];
    }
    if (!any) return;
    score(packed, tile, lanes, static_cast<std::size_t>(keys));
    kernels_.step(state, space_.tile, count, head_dim(), block_.shape.scale, masked, space_.scores);
  }

  /// Scores of the tile's keys, those of each rotation with the queries' form for it.
  void score(const LaneMemory& packed, const KeyTile& tile, std::size_t lanes, std::size_t keys) {
    bool first_origin = true;
    block_.for_each_origin(tile, [&](std::size_t origin, std::size_t first, std::size_t end) {
      const std::size_t last = std::min(end, keys);
      if (first >= last) return;
      std::size_t i = 0;
      while (block_.q[i].origin != origin) ++i;
      if (first_origin) {
        kernels_.scores(packed.queries(i, lanes), space_.tile, head_dim(), 0, keys / 16, space_.scores);
      } else {
        kernels_.scores(packed.queries(i, lanes), space_.tile, head_dim(), first / 16, (last + 15) / 16,
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
