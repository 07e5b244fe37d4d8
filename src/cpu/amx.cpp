// SPDX-License-Identifier: Apache-2.0
// bf16 products in tiles (AMX, TDPBF16PS): C[16 outputs, 16 tokens] += A[16 outputs, 32 inputs] · B[32 inputs, 16 tokens].
// A tile of A is 16 rows of the weights where they lie, so nothing of the model is repacked; B is the activations, which
// `pack` leaves as [group of 16 tokens][block of 32 inputs][16 pairs of inputs][16 tokens][2]. One element of C is summed
// block by block in order whatever stands beside it, so a token's result does not depend on the batch. Everything
// that is not bf16 is AVX-512's.
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "kernels.hpp"
#include "target.hpp"

namespace modicum::cpu {
namespace amx {

constexpr std::size_t kTileRows = 16;
constexpr std::size_t kTileInputs = 32;
constexpr std::size_t kTileBytes = 1024;
constexpr std::size_t kTileElements = kTileBytes / sizeof(bf16);

std::size_t packed_bytes(DType dtype, std::size_t tokens, std::size_t cols) {
  if (dtype != DType::bf16) return avx512_kernels().packed_bytes(dtype, tokens, cols);
  return padded(tokens, kPackTokens) / kPackTokens * (padded(cols, kTileInputs) / kTileInputs) * kTileBytes;
}

}  // namespace amx
}  // namespace modicum::cpu

MODICUM_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,amx-tile,amx-bf16")
namespace modicum::cpu::amx {

struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

void pack(DType dtype, const float* x, std::size_t tokens, std::size_t cols, std::size_t group, void* packed) {
  if (dtype != DType::bf16) return avx512_kernels().pack(dtype, x, tokens, cols, group, packed);
  const std::size_t blocks = padded(cols, kTileInputs) / kTileInputs;
  bf16* const tiles = static_cast<bf16*>(packed) + group * blocks * kTileElements;
  const std::size_t begin = group * kPackTokens;
  const std::size_t count = std::min(tokens - begin, kPackTokens);
  if (count < kPackTokens || cols % kTileInputs != 0) std::fill_n(tiles, blocks * kTileElements, bf16{});
  for (std::size_t t = 0; t < count; ++t) {
    const float* row = x + (begin + t) * cols;
    for (std::size_t k = 0; k < cols; ++k) {
      tiles[k / 2 * 2 * kPackTokens + t * 2 + k % 2] = to_bf16(row[k]);
    }
  }
}

/// Where one product's operands lie, and how far ahead of its use a line of the weights is fetched.
struct Operands {
  const bf16* w = nullptr;          ///< first row of this block of outputs
  std::size_t w_rows = 0;           ///< rows from there to the end of the matrix
  std::size_t cols = 0;
  const bf16* x = nullptr;          ///< first group of tokens
  std::size_t x_group = 0;          ///< elements of one group
};

/// A block of weights that would reach over an edge of the matrix, copied with zeros around it.
inline void stage(const Operands& at, std::size_t row, std::size_t k, bf16* tile) {
  std::fill_n(tile, kTileElements, bf16{});
  const std::size_t rows = std::min(kTileRows, at.w_rows - std::min(at.w_rows, row));
  const std::size_t inputs = std::min(kTileInputs, at.cols - k);
  for (std::size_t r = 0; r < rows; ++r) {
    std::memcpy(tile + r * kTileInputs, at.w + (row + r) * at.cols + k, inputs * sizeof(bf16));
  }
}

/// Fetches what this block of outputs, or the next one, needs 16 blocks of inputs later; the hardware's own prefetcher
/// does not follow so many rows at once.
inline void prefetch(const Operands& at, std::size_t rows, std::size_t k) {
  constexpr std::size_t ahead = 16 * kTileInputs;
  std::size_t next = k + ahead;
  if (next >= at.cols) {
    next = next - at.cols + rows * at.cols;
    if (at.w_rows < 2 * rows || next >= (rows + 1) * at.cols) return;
  }
  for (std::size_t r = 0; r < rows; ++r) {
    _mm_prefetch(reinterpret_cast<const char*>(at.w + r * at.cols + next), _MM_HINT_T0);
  }
}

#define MODICUM_LOAD_W(tile, row)                                                           \
  do {                                                                                      \
    if (edge || k + kTileInputs > at.cols) {                                                \
      stage(at, row, k, staged);                                                            \
      _tile_loadd(tile, staged, 64);                                                        \
    } else {                                                                                \
      _tile_loadd(tile, at.w + (row) * at.cols + k, static_cast<long>(at.cols * sizeof(bf16))); \
    }                                                                                       \
  } while (false)

/// C tiles of O × T blocks (O, T ≤ 2) over all inputs, stored to c[o][t][16 outputs][16 tokens]. Tile registers are named
/// by literals, hence the branches.
template <int O, int T>
inline void tile_block(const Operands& at, bool fetch, float* c) {
  alignas(64) bf16 staged[kTileElements];
  const bool edge = at.w_rows < O * kTileRows;
  _tile_zero(0);
  if constexpr (T == 2) _tile_zero(1);
  if constexpr (O == 2) _tile_zero(2);
  if constexpr (O == 2 && T == 2) _tile_zero(3);
  for (std::size_t k = 0, block = 0; k < at.cols; k += kTileInputs, ++block) {
    if (fetch) prefetch(at, O * kTileRows, k);
    _tile_loadd(6, at.x + block * kTileElements, 64);
    if constexpr (T == 2) _tile_loadd(7, at.x + at.x_group + block * kTileElements, 64);
    MODICUM_LOAD_W(4, 0);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (T == 2) _tile_dpbf16ps(1, 4, 7);
    if constexpr (O == 2) {
      MODICUM_LOAD_W(5, kTileRows);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (T == 2) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, c, 64);
  if constexpr (T == 2) _tile_stored(1, c + 256, 64);
  if constexpr (O == 2) _tile_stored(2, c + 512, 64);
  if constexpr (O == 2 && T == 2) _tile_stored(3, c + 768, 64);
}

#undef MODICUM_LOAD_W

/// Writes one C tile's [outputs, tokens] into y[t, o].
inline void store_tile(const MatmulTask& task, const float* c, std::size_t o, std::size_t outputs, std::size_t t) {
  const std::size_t tokens = std::min(kPackTokens, task.tokens - t);
  for (std::size_t i = 0; i < tokens; ++i) {
    float* y = task.y + (t + i) * task.y_stride + o;
    for (std::size_t j = 0; j < outputs; ++j) {
      const float sum = task.bias != nullptr ? c[j * 16 + i] + task.bias[o + j] : c[j * 16 + i];
      y[j] = task.add ? y[j] + sum : sum;
    }
  }
}

template <int O>
void matmul_outputs(const MatmulTask& task, std::size_t o, std::size_t outputs) {
  alignas(64) float c[4 * 256];
  Operands at{.w = static_cast<const bf16*>(task.w) + o * task.cols, .w_rows = task.o_end - o, .cols = task.cols};
  at.x_group = padded(task.cols, kTileInputs) / kTileInputs * kTileElements;
  const std::size_t groups = padded(task.tokens, kPackTokens) / kPackTokens;
  for (std::size_t g = 0; g < groups; g += 2) {
    at.x = static_cast<const bf16*>(task.x) + g * at.x_group;
    const bool pair = g + 1 < groups;
    if (pair) {
      tile_block<O, 2>(at, g == 0 && at.w_rows >= O * kTileRows, c);
    } else {
      tile_block<O, 1>(at, g == 0 && at.w_rows >= O * kTileRows, c);
    }
    for (std::size_t i = 0; i * kTileRows < outputs; ++i) {
      const std::size_t count = std::min(kTileRows, outputs - i * kTileRows);
      store_tile(task, c + i * 512, o + i * kTileRows, count, g * kPackTokens);
      if (pair) store_tile(task, c + i * 512 + 256, o + i * kTileRows, count, (g + 1) * kPackTokens);
    }
  }
}

void matmul(const MatmulTask& task) {
  if (task.dtype != DType::bf16) return avx512_kernels().matmul(task);
  const TileConfig config;
  _tile_loadconfig(&config);
  std::size_t o = task.o_begin;
  for (; o + kTileRows < task.o_end; o += 2 * kTileRows) {
    matmul_outputs<2>(task, o, std::min(2 * kTileRows, task.o_end - o));
  }
  if (o < task.o_end) matmul_outputs<1>(task, o, task.o_end - o);
  _tile_release();
}

}  // namespace modicum::cpu::amx
MODICUM_TARGET_END

namespace modicum::cpu {

bool amx_request() {
  constexpr int request_permission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

const KernelTable& amx_kernels() {
  static const KernelTable table = [] {
    KernelTable t = avx512_kernels();
    t.isa = ops::Isa::amx;
    t.packed_bytes = amx::packed_bytes;
    t.pack = amx::pack;
    t.matmul = amx::matmul;
    return t;
  }();
  return table;
}

}  // namespace modicum::cpu
