// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <memory>
#include <span>
#include <vector>

#include "attention_block.hpp"

namespace modicum::ops {

/// The rows of a block and their scores against a tile, row by row in f32: for every key dtype and head size.
class RowScores {
 public:
  enum class Load { keys, keys_and_values };

  RowScores(const AttentionBlock& block, Load load)
      : block_(block), load_(load), count_(block.rows()), space_(workspace()) {
    if (space_.rows.size() < count_) space_.rows.resize(count_);
    for (cpu::SoftmaxRow& row : rows()) {
      row.o = nullptr;
      row.most = -INFINITY;
      row.sum = 0.0f;
    }
  }

  std::span<cpu::SoftmaxRow> rows() { return std::span(space_.rows).first(count_); }

  /// Memory for floats, aligned to kAlignment.
  float* sums(std::size_t count) {
    const std::size_t need = count + cpu::kAlignment / sizeof(float);
    if (space_.sums.size() < need) space_.sums.resize(need);
    return reinterpret_cast<float*>(
        cpu::padded(reinterpret_cast<std::uintptr_t>(space_.sums.data()), cpu::kAlignment));
  }

  /// Calls body(first row, rows, keys, tile) with the scores of tile t for the rows that see something of it:
  /// others must not meet it, as their largest score is still −∞.
  template <class Body>
  void meet(std::size_t t, const Body& body) {
    block_.walk(t, [&](const KeyTile& tile, std::size_t part_begin, std::size_t part_end, std::size_t row,
                       std::size_t count) {
      load(tile);
      score(tile, part_begin, part_end, row, count);
      for (std::size_t r = row; r < row + count;) {
        std::size_t end = r;
        while (end < row + count && space_.rows[end].first < space_.rows[end].last) ++end;
        if (end > r) body(&space_.rows[r], end - r, space_.tile, tile);
        r = end + 1;
      }
    });
  }

 private:
  /// What one thread needs for one task; kept between tasks.
  struct Workspace {
    cpu::TileBuffer tile;
    std::vector<cpu::SoftmaxRow> rows;
    std::vector<float> sums;  ///< with room to align
    std::vector<float> before;
  };

  static Workspace& workspace() {
    thread_local std::unique_ptr<Workspace> own = std::make_unique<Workspace>();
    return *own;
  }

  void load(const KeyTile& tile) {
    std::size_t begin = 0;
    for (const KeyRun& run : tile.runs) {
      cpu::KeyRows keys = block_.keys(run);
      if (load_ == Load::keys) keys.v = nullptr;
      cpu::kernels().load_keys(block_.shape.kv_dtype, keys, block_.shape.head_dim, begin, space_.tile);
      begin += run.count;
    }
  }

  void score(const KeyTile& tile, std::size_t part_begin, std::size_t part_end, std::size_t row,
             std::size_t count) {
    block_.for_each_query(part_begin, part_end, row, [&](const Part& part, std::size_t n, std::size_t at) {
      const auto [first, last] = block_.seen(tile, part.first_position() + n);
      for (std::size_t h = 0; h < block_.heads(); ++h) {
        space_.rows[at + h].first = first;
        space_.rows[at + h].last = last;
      }
    });
    block_.for_each_origin(tile, [&](std::size_t origin, std::size_t first, std::size_t last) {
      score(block_.queries_for(origin), part_begin, part_end, row, count, first, last);
    });
  }

  /// Scores of keys [first, last) of the tile with the queries' form for that rotation. A block of keys may
  /// hold some of another rotation: their scores are put back.
  void score(const float* queries, std::size_t part_begin, std::size_t part_end, std::size_t row,
             std::size_t count, std::size_t first, std::size_t last) {
    const std::size_t head_dim = block_.shape.head_dim;
    block_.for_each_query(part_begin, part_end, row, [&](const Part& part, std::size_t n, std::size_t at) {
      const float* q = queries + block_.offset(part, n);
      for (std::size_t h = 0; h < block_.heads(); ++h) space_.rows[at + h].q = q + h * head_dim;
    });
    cpu::SoftmaxRow* rows = &space_.rows[row];
    space_.before.resize(std::max(space_.before.size(), count * first));
    float* const before = space_.before.data();
    for (std::size_t r = 0; r < count; ++r) std::copy_n(rows[r].p, first, before + r * first);
    cpu::kernels().scores(rows, count, space_.tile, head_dim, block_.shape.scale,
                          static_cast<std::uint32_t>(first), static_cast<std::uint32_t>(last));
    for (std::size_t r = 0; r < count; ++r) std::copy_n(before + r * first, first, rows[r].p);
  }

  const AttentionBlock& block_;
  Load load_;
  std::size_t count_;
  Workspace& space_;
};

/// Attention row by row in f32.
class RowAttention {
 public:
  explicit RowAttention(const AttentionBlock& block)
      : block_(block), scores_(block, RowScores::Load::keys_and_values) {}

  void run() {
    start_rows();
    const std::size_t tiles = block_.tiles();
    for (std::size_t t = 0; t < tiles; ++t) {
      scores_.meet(
          t, [&](cpu::SoftmaxRow* rows, std::size_t count, const cpu::TileBuffer& keys, const KeyTile&) {
            cpu::kernels().accumulate(rows, count, keys, block_.shape.head_dim);
          });
    }
    finish_rows();
  }

 private:
  void start_rows() {
    const std::size_t width = cpu::padded(block_.shape.head_dim, 16);
    const std::size_t need = block_.rows() * width;
    float* o = scores_.sums(need);
    std::fill_n(o, need, 0.0f);
    for (cpu::SoftmaxRow& row : scores_.rows()) {
      row.o = o;
      o += width;
    }
  }

  void finish_rows() {
    const std::size_t head_dim = block_.shape.head_dim;
    block_.for_each_query(0, block_.parts.size(), 0, [&](const Part& part, std::size_t n, std::size_t at) {
      float* out = block_.out + block_.offset(part, n);
      for (std::size_t h = 0; h < block_.heads(); ++h, out += head_dim) {
        const cpu::SoftmaxRow& row = scores_.rows()[at + h];
        const float inverse = 1.0f / row.sum;
        for (std::size_t d = 0; d < head_dim; ++d) out[d] = row.o[d] * inverse;
      }
    });
  }

  const AttentionBlock& block_;
  RowScores scores_;
};

}  // namespace modicum::ops
