// SPDX-License-Identifier: Apache-2.0
// The table of kernels that each instruction set fills. Kernels take pointers and sizes; they neither
// allocate, throw nor print.
#pragma once

#include <cstddef>
#include <cstdint>

#include <modicum/ops/attention.hpp>
#include <modicum/ops/isa.hpp>
#include <modicum/tensor/matrix.hpp>

namespace modicum::cpu {

/// Packed activations begin at a multiple of this, and their columns are padded with zeros to a multiple of
/// kColumnPad.
inline constexpr std::size_t kAlignment = 64;
inline constexpr std::size_t kColumnPad = 32;
/// Packing works on groups of this many tokens.
inline constexpr std::size_t kPackTokens = 16;
inline constexpr std::size_t kMostHeadDim = 256;
/// Up to so many tokens, AVX512-VNNI packs and multiplies with integer weights row by row.
inline constexpr std::size_t kFewTokens = 4;
/// Sums of so many tokens wait in a thread's scratch at once.
inline constexpr std::size_t kSumTokens = 512;
/// Bytes of scratch that each `matmul` task gets.
inline constexpr std::size_t kMatmulScratch = 576 * 1024;

inline constexpr std::size_t padded(std::size_t n, std::size_t to) {
  return (n + to - 1) / to * to;
}

/// Rows [o_begin, o_end) of one product: y[t, o] (+)= dot(x[t], w[o]) + bias[o] for all t < tokens.
struct MatmulTask {
  const void* x = nullptr;  ///< as `pack` left it
  std::size_t tokens = 0;
  WeightView w;
  std::size_t o_begin = 0;
  std::size_t o_end = 0;
  const float* bias = nullptr;
  float* y = nullptr;
  std::size_t y_stride = 0;
  bool add = false;
  void* scratch = nullptr;  ///< kMatmulScratch bytes, aligned to kAlignment
};

/// Outputs [o_begin, o_end), multiples of 32 (o_end up to the next one beyond the rows), of
/// h[t, o] = silu(dot(x[t], gate[o]) + gate_bias[o]) · (dot(x[t], up[o]) + up_bias[o]).
struct GatedTask {
  const void* x = nullptr;  ///< as `pack` left it
  std::size_t tokens = 0;
  WeightView gate;
  WeightView up;
  DType next = DType::bf16;  ///< of the weights that h meets
  std::size_t o_begin = 0;
  std::size_t o_end = 0;
  const float* gate_bias = nullptr;
  const float* up_bias = nullptr;
  void* packed = nullptr;   ///< h, as `pack` would leave it (Fusion::packed)
  float* y = nullptr;       ///< h [tokens, rows] (Fusion::activation)
  void* scratch = nullptr;  ///< as of `MatmulTask`
};

/// What a gated layer's kernel does after the products.
enum class Fusion {
  none,        ///< there is no such kernel
  activation,  ///< the activation
  packed,      ///< that, and packing for the next product
};

/// A tile of keys and values of one key head as f32: keys transposed [head_dim, kKeyTile], values
/// [kKeyTile, value_stride]; keys that are absent are zero.
struct TileBuffer {
  alignas(kAlignment) float k[kMostHeadDim * ops::kKeyTile];
  alignas(kAlignment) float v[ops::kKeyTile * kMostHeadDim];
};

/// Rows of keys and values of one head, as elements or as codes (see ops::KvScales).
struct KeyRows {
  const void* k = nullptr;
  const void* v = nullptr;  ///< `load_keys`: or null, for keys alone
  std::size_t stride = 0;   ///< from row to row, in elements (of codes: in bytes)
  std::size_t count = 0;
  int bits = 0;                   ///< of a code; 0 for elements
  std::size_t first = 0;          ///< of the rows, within its group of ops::kKeyGroup
  const f16* k_scales = nullptr;  ///< of that group: [2 (scale, offset)][width], of which this head's count
  const f16* v_scales = nullptr;  ///< of the first row: [kv_heads][2 (scale, offset)], from this head on
  std::size_t width = 0;          ///< kv_heads · head_dim
  std::size_t kv_heads = 0;
};

/// One query row's running softmax over the tiles seen so far.
struct SoftmaxRow {
  const float* q = nullptr;  ///< [head_dim], in the rotation of the current run
  float* o = nullptr;        ///< [padded head_dim]: Σ p v
  float most = 0;            ///< the largest score
  float sum = 0;             ///< Σ p
  std::uint32_t first = 0;   ///< keys [first, last) of the current tile are seen
  std::uint32_t last = 0;
  alignas(kAlignment) float p[ops::kKeyTile];  ///< scores, then weights, of the current tile
};

/// Keys of a tile as rows of 16 × 32: those of key block i and block b of 32 elements of head_dim begin at
/// data + i · next_keys + b · next_block, `stride` elements apart.
struct LaneKeys {
  const bf16* data = nullptr;
  std::size_t stride = 0;
  std::size_t next_keys = 0;
  std::size_t next_block = 0;
};

/// Rows that will be needed next, wherever they are: they are only ever prefetched.
struct RowsAhead {
  std::uintptr_t first = 0;
  std::size_t stride = 0;  ///< in bytes, as `bytes`, of which a row has none where there is nothing to fetch
  std::size_t bytes = 0;
};

/// A tile of bf16 keys and values of one key head for kernels whose lanes are query rows.
struct alignas(kAlignment) LaneTile {
  bf16 k[ops::kKeyTile * kMostHeadDim];      ///< [16 keys][32 of head_dim][16][32]
  bf16 v[ops::kKeyTile * kMostHeadDim];      ///< [key][head_dim], of tiles that are put together
  bf16 pairs[ops::kKeyTile * kMostHeadDim];  ///< values: [16 of head_dim][32 keys][16 pairs][16][2]
  LaneKeys keys;                             ///< in k, or where they lie
  RowsAhead next;                            ///< keys that `step` may fetch
};

/// The running softmax of 16 query rows.
struct alignas(kAlignment) QueryLanes {
  float most[16];          ///< the largest score, before scaling; kNothingSeen at first
  float sum[16];           ///< Σ p
  std::int32_t first[16];  ///< keys [first, last) of the current tile are seen
  std::int32_t last[16];
  std::size_t used = 16;  ///< lanes before this one have a row
  float* o = nullptr;     ///< [16 of head_dim][16 lanes][16]: Σ p v, elements in the kernel's order
};
inline constexpr float kNothingSeen = -1e30f;

/// Attention of 16 query rows at a time, for head sizes that are a multiple of 32; see attention_lanes.inc.
struct LaneKernels {
  /// Before and after the other calls of a task, on its thread.
  void (*enter)();
  void (*leave)();
  /// Fills keys [begin, begin + rows.count) of `tile`; `finish` makes a tile of `count` keys ready.
  void (*load)(const KeyRows& rows, std::size_t head_dim, std::size_t begin, LaneTile& tile);
  void (*finish)(LaneTile& tile, std::size_t count, std::size_t head_dim);
  /// Make ready a tile that `rows` fill: its keys, which with `in_place` may stay where they lie, and its
  /// values.
  void (*place_keys)(const KeyRows& rows, std::size_t head_dim, bool in_place, LaneTile& tile);
  void (*place_values)(const KeyRows& rows, std::size_t head_dim, LaneTile& tile);
  /// Packs 16 rows (null: idle lanes) of f32 [head_dim] to bf16 [16 · head_dim].
  void (*pack)(const float* const* rows, std::size_t head_dim, bf16* to);
  /// s[key][lane] for blocks [first, last) of 16 keys; a tile has whole pairs of blocks.
  void (*scores)(const bf16* q, const LaneTile& tile, std::size_t head_dim, std::size_t first,
                 std::size_t last, float* s);
  /// Moves the running softmax on by the tile's first `count` keys; unless `masked`, every lane sees all.
  void (*step)(QueryLanes& state, const LaneTile& tile, std::size_t count, std::size_t head_dim, float scale,
               bool masked, const float* s);
  /// Adds the partial result of later keys.
  void (*merge)(QueryLanes& state, const QueryLanes& part, std::size_t head_dim, float scale);
  /// Writes o / sum to 16 rows (null: idle lanes).
  void (*write)(const QueryLanes& state, std::size_t head_dim, float* const* out);
};

struct KernelTable {
  ops::Isa isa;
  /// Bytes that `pack` fills for this shape.
  std::size_t (*packed_bytes)(DType dtype, std::size_t tokens, std::size_t cols);
  /// Packs tokens [16 g, 16 g + 16) of x [tokens, cols] for weights of `dtype`.
  void (*pack)(DType dtype, const float* x, std::size_t tokens, std::size_t cols, std::size_t group,
               void* packed);
  void (*matmul)(const MatmulTask& task);
  /// Fills keys [begin, begin + rows.count) of `tile`.
  void (*load_keys)(DType dtype, const KeyRows& rows, std::size_t head_dim, std::size_t begin,
                    TileBuffer& tile);
  /// p[j] = scale · dot(q, k[j]) for j in [first, last) of the tile, for `count` rows.
  void (*scores)(SoftmaxRow* rows, std::size_t count, const TileBuffer& tile, std::size_t head_dim,
                 float scale, std::uint32_t first, std::uint32_t last);
  /// Turns scores into weights e^(score − most), moves `most` and `sum` on and adds weights · values to each
  /// row; with head_dim 0, no values.
  void (*accumulate)(SoftmaxRow* rows, std::size_t count, const TileBuffer& tile, std::size_t head_dim);
  void (*rms_norm)(const float* x, const float* weight, float eps, std::size_t n, float* y);
  void (*silu_mul)(float* gate, const float* up, std::size_t n);
  void (*rope)(float* x, const float* cos, const float* sin, std::size_t heads, std::size_t head_dim);
  /// Of a row of logits, see ops/reductions.hpp.
  double (*exp_sum)(const float* x, std::size_t n, float shift);
  float (*largest)(const float* x, std::size_t n);
  /// Products and what follows them in one, as `fuses` says.
  void (*gated)(const GatedTask& task) = nullptr;
  /// What `gated` does with weights of `dtype` before weights of `next` for so many tokens.
  Fusion (*fuses)(DType dtype, DType next, std::size_t tokens) = [](DType, DType, std::size_t) {
    return Fusion::none;
  };
  /// For bf16 keys and values; null where rows are attended to one by one.
  const LaneKernels* lanes = nullptr;
};

const KernelTable& plain_kernels();
const KernelTable& avx2_kernels();
const KernelTable& avx512_kernels();
const KernelTable& avx512vnni_kernels();
const KernelTable& avx512bf16_kernels();
const KernelTable& amx_kernels();

/// Asks the operating system for the tile registers. False where it has none to give.
bool amx_request();

/// The active instruction set's kernels.
const KernelTable& kernels();

}  // namespace modicum::cpu
