// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <modicum/base/thread_pool.hpp>
#include <modicum/tensor/dtype.hpp>

namespace modicum::ops {

/// Keys are walked in tiles of this many consecutive positions, counted from position 0 of the path. A tile
/// is the unit of the online softmax, so a query's result depends on the keys and their positions alone,
/// never on how they are split into segments.
inline constexpr std::size_t kKeyTile = 64;

/// Consecutive rows of this many share a scale and an offset per channel of their integer keys.
inline constexpr std::size_t kKeyGroup = 64;

/// How integers stand for keys and values: value = scale · code + offset, with codes from 0 to 2^bits − 1.
/// Keys have a scale a channel (their outliers stay in channels), values a scale a token (Liu et al. 2024,
/// "KIVI", arXiv:2402.02750, section 3). A head's row is head_dim codes of 8 bits, or head_dim / 2 bytes of
/// which byte b holds code b in its lower half and code b + head_dim / 2 in the upper.
struct KvScales {
  int bits = 8;              ///< or 4
  const f16* k = nullptr;    ///< [layers][⌈rows / kKeyGroup⌉][2 (scale, offset)][kv_heads · head_dim]
  const f16* v = nullptr;    ///< [layers][rows][kv_heads][2 (scale, offset)]
  std::size_t k_stride = 0;  ///< from layer to layer, in elements
  std::size_t v_stride = 0;
};

/// Rows [first, first + count) of keys and values of consecutive positions. A row is kv_heads · head_dim
/// elements, rows follow each other without gaps, and layer l's row 0 lies l · layer_stride bytes after that
/// of layer 0 at `k` and `v`. The keys were rotated counting from position `origin` of the path.
struct KeyRun {
  const std::byte* k = nullptr;
  const std::byte* v = nullptr;
  std::size_t layer_stride = 0;
  std::size_t origin = 0;
  std::uint32_t count = 0;
  std::uint32_t first = 0;
  const KvScales* scales = nullptr;  ///< where k and v are codes; null: elements of the shape's kv_dtype
};

/// The keys of one tile of a path, in order of position: positions [begin, begin + count). Tiles of several
/// paths that hold the same keys are the same object.
struct KeyTile {
  std::size_t begin = 0;
  std::uint32_t count = 0;
  std::vector<KeyRun> runs;
};

/// Consecutive queries of one path. Query `i` has position `position + i` and sees keys at positions
/// (p − window, p], all up to p with window 0.
struct QueryGroup {
  std::size_t row = 0;  ///< of the first query, in q and out
  std::size_t count = 0;
  std::size_t position = 0;
  std::span<const KeyTile* const> tiles;  ///< of the path, from position 0
};

struct AttentionShape {
  std::size_t heads = 0;
  std::size_t kv_heads = 0;
  std::size_t head_dim = 0;  ///< at most 256
  DType kv_dtype = DType::f32;
  std::size_t layer = 0;
  std::size_t window = 0;
  float scale = 1.0f;  ///< usually head_dim^-1/2
};

/// The queries [rows, heads, head_dim] rotated for keys whose rotation counts from `origin`: the query at
/// position m by the angle of m − origin, as (R(m) q)·(R(n + Δ) k) = (R(m − Δ) q)·(R(n) k).
struct RotatedQueries {
  std::size_t origin = 0;
  const float* q = nullptr;
};

/// out[r, h, :] = Σ_j softmax_j(scale · q[r, h, :] · k[j, h / group, :]) v[j, h / group, :], by the online
/// softmax over key tiles (Milakov and Gimelshein 2018; Dao et al. 2022, algorithm 1), in f32. With bf16
/// keys, head sizes that are a multiple of 32 and bf16 products in the instruction set, queries and softmax
/// weights are rounded to bf16 before the products (as in transformers' bf16 attention), sums stay f32, and
/// each 2048 positions are summed by themselves and merged in order. `q` has an entry for every origin that
/// occurs among the tiles; out is [rows, heads, head_dim]. Queries of several groups that share a tile are
/// processed against it together.
void attention(ThreadPool& pool, const AttentionShape& shape, std::span<const RotatedQueries> q,
               std::span<const QueryGroup> groups, float* out);

}  // namespace modicum::ops
