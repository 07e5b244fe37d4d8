// SPDX-License-Identifier: Apache-2.0
// bf16 products in tiles (AMX, TDPBF16PS): C[16 outputs, 16 tokens] += A[16 outputs, 32 inputs] · B[32
// inputs, 16 tokens]. A tile of A is 16 rows of the weights, so nothing of the model is repacked for good; B
// is the activations, which `pack` leaves as [group of 16 tokens][block of 32 inputs][16 pairs of inputs][16
// tokens][2]. An element of C is summed in f32, block by block in order, whatever stands beside it, so a
// token's result does not depend on the batch; as in the hardware's products, subnormal inputs and sums count
// as zero. Everything that is not bf16 is AVX-512's.
#include <algorithm>
#include <concepts>

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernels.hpp"
#include "target.hpp"

namespace modicum::cpu {
namespace amx {

/// Those with integer weights: amx_int8.cpp.
void matmul_integers(const MatmulTask& task);
void gated_integers(const GatedTask& task);

constexpr std::size_t kTileInputs = 32;
constexpr std::size_t kTileElements = 16 * kTileInputs;

/// Weights are copied to aligned tiles in panels of 2 × 16 rows by at most 1024 inputs, 64 KiB, and pass all
/// tokens in parts of 512 inputs that stay in the first-level cache.
constexpr std::size_t kPanelBlocks = 32;
constexpr std::size_t kPartBlocks = 16;
constexpr std::size_t kPanelBytes = 2 * kTileElements * kPanelBlocks * sizeof(bf16);
/// Sums of so many rows of weights and tokens wait in the second-level cache while the inputs pass, panel by
/// panel.
constexpr std::size_t kSumRows = 256;
static_assert(kPanelBytes + kSumRows * kSumTokens * sizeof(float) <= kMatmulScratch);

std::size_t packed_bytes(DType dtype, std::size_t tokens, std::size_t cols) {
  if (!is_float(dtype)) return avx512vnni_kernels().packed_bytes(dtype, tokens, cols);
  if (dtype != DType::bf16) return avx512_kernels().packed_bytes(dtype, tokens, cols);
  return padded(tokens, kPackTokens) * padded(cols, kTileInputs) * sizeof(bf16);
}

}  // namespace amx
}  // namespace modicum::cpu

MODICUM_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,amx-tile,amx-bf16")
namespace modicum::cpu::amx {

#include "avx512.inc"
#include "tiles.inc"

struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};

  std::uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

/// A constant of its own: GCC's intrinsic says that it reads 8 bytes, and bytes of a local one that nothing
/// seems to read may never be written.
constexpr TileConfig kTileConfig;

void pack(DType dtype, const float* x, std::size_t tokens, std::size_t cols, std::size_t group,
          void* packed) {
  if (!is_float(dtype)) return avx512vnni_kernels().pack(dtype, x, tokens, cols, group, packed);
  if (dtype != DType::bf16) return avx512_kernels().pack(dtype, x, tokens, cols, group, packed);
  const std::size_t blocks = padded(cols, kTileInputs) / kTileInputs;
  bf16* const tiles = static_cast<bf16*>(packed) + group * blocks * kTileElements;
  const float* const first = x + group * kPackTokens * cols;
  const std::size_t count = std::min(tokens - group * kPackTokens, kPackTokens);
  for (std::size_t b = 0; b < blocks; ++b) {
    const std::size_t k = b * kTileInputs;
    const auto mask = static_cast<std::uint32_t>((std::uint64_t{1} << std::min(kTileInputs, cols - k)) - 1);
    __m512i pairs[16];
    for (std::size_t t = 0; t < 16; ++t) {
      const float* row = first + t * cols + k;
      const auto low = static_cast<__mmask16>(t < count ? mask : 0);
      const auto high = static_cast<__mmask16>(t < count ? mask >> 16 : 0);
      pairs[t] = (__m512i)_mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(high, row + 16),
                                              _mm512_maskz_loadu_ps(low, row));
    }
    transpose(pairs);
    for (std::size_t p = 0; p < 16; ++p)
      _mm512_store_si512(tiles + b * kTileElements + p * kTileInputs, pairs[p]);
  }
}

/// Two tiles' rows of weights for consecutive blocks of inputs: the tile of block b begins `step` · b
/// elements on, and its rows lie `stride` bytes apart.
struct Panel {
  const bf16* first = nullptr;
  const bf16* second = nullptr;
  std::size_t step = 0;
  std::size_t stride = 0;
};

/// C tiles of 2 × T blocks (T ≤ 2), c[first, second][t][16 outputs][16 tokens], over `blocks` blocks of
/// inputs; they begin at zero where `fresh`, else where c stands. Tile registers are named by literals, hence
/// the branches.
template <int T>
inline void multiply(const Panel& w, const bf16* x, std::size_t x_group, std::size_t blocks, bool fresh,
                     float* c) {
  // GCC's tile loads do not say that they read memory; what was staged must be there.
  asm volatile("" ::: "memory");
  if (fresh) {
    _tile_zero(0);
    if constexpr (T == 2) _tile_zero(1);
    _tile_zero(2);
    if constexpr (T == 2) _tile_zero(3);
  } else {
    _tile_loadd(0, c, 64);
    if constexpr (T == 2) _tile_loadd(1, c + kTileFloats, 64);
    _tile_loadd(2, c + T * kTileFloats, 64);
    if constexpr (T == 2) _tile_loadd(3, c + 3 * kTileFloats, 64);
  }
  const auto stride = static_cast<long>(w.stride);
  for (std::size_t b = 0; b < blocks; ++b) {
    _tile_loadd(4, w.first + b * w.step, stride);
    _tile_loadd(6, x + b * kTileElements, 64);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (T == 2) {
      _tile_loadd(7, x + x_group + b * kTileElements, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    _tile_loadd(5, w.second + b * w.step, stride);
    _tile_dpbf16ps(2, 5, 6);
    if constexpr (T == 2) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, 64);
  if constexpr (T == 2) _tile_stored(1, c + kTileFloats, 64);
  _tile_stored(2, c + T * kTileFloats, 64);
  if constexpr (T == 2) _tile_stored(3, c + 3 * kTileFloats, 64);
}

/// Copies blocks of a tile's rows side by side, with zeros beyond the matrix. Weights in a file are aligned
/// to no cache line, and rows that lie a power of two apart push each other out of the cache.
inline void stage(const Rows& rows, std::size_t cols, std::size_t block, std::size_t blocks, bf16* to) {
  const std::size_t whole = std::min(blocks, cols / kTileInputs - std::min(block, cols / kTileInputs));
  const auto tail = static_cast<__mmask32>((std::uint64_t{1} << cols % kTileInputs) - 1);
  for (std::size_t r = 0; r < kTileRows; ++r, to += kTileInputs) {
    if (r >= rows.count) {
      for (std::size_t b = 0; b < blocks; ++b)
        _mm512_store_si512(to + b * kTileElements, _mm512_setzero_si512());
      continue;
    }
    const bf16* from = static_cast<const bf16*>(rows.w) + r * cols + block * kTileInputs;
    for (std::size_t b = 0; b < whole; ++b) {
      _mm512_store_si512(to + b * kTileElements, _mm512_loadu_si512(from + b * kTileInputs));
    }
    if (whole < blocks) {
      _mm512_store_si512(to + whole * kTileElements,
                         _mm512_maskz_loadu_epi16(tail, from + whole * kTileInputs));
    }
  }
}

inline Panel staged(const Rows& first, const Rows& second, std::size_t cols, std::size_t block,
                    std::size_t blocks, bf16* room) {
  bf16* const other = room + kPanelBlocks * kTileElements;
  stage(first, cols, block, blocks, room);
  stage(second, cols, block, blocks, other);
  return {room, other, kTileElements, kTileInputs * sizeof(bf16)};
}

/// `count` in the least number of equal parts of at most `most`.
inline std::size_t equal_part(std::size_t count, std::size_t most) {
  const std::size_t parts = (count + most - 1) / most;
  return (count + parts - 1) / parts;
}

/// One product or two that share their input, as a number of steps: a step is two tiles' rows of weights, and
/// what to do with their complete C tiles.
///
///   std::size_t steps() const;
///   Rows first(std::size_t step) const;  second likewise
///   void store(std::size_t step, std::size_t g, const float* first, const float* second) const;  for group g
template <class Work>
concept TileWork = requires(const Work work, const float* c) {
  { work.steps() } -> std::same_as<std::size_t>;
  { work.first(0) } -> std::same_as<Rows>;
  { work.second(0) } -> std::same_as<Rows>;
  work.store(0, 0, c, c);
};

/// Hands over the C tiles of a step for groups [g, g + T).
template <int T, TileWork Work>
inline void store_tiles(const Work& work, std::size_t step, std::size_t g, const float* c) {
  for (std::size_t t = 0; t < T; ++t) work.store(step, g + t, c + t * kTileFloats, c + (T + t) * kTileFloats);
}

/// The activations' side.
struct Packed {
  const bf16* x = nullptr;
  std::size_t cols = 0;
  std::size_t groups = 0;

  std::size_t blocks() const { return padded(cols, kTileInputs) / kTileInputs; }
  const bf16* at(std::size_t group, std::size_t block) const {
    return x + (group * blocks() + block) * kTileElements;
  }
};

/// Many tokens: steps [begin, end) and groups [g_begin, g_end), whose sums have room in the scratch. For each
/// panel of inputs, all weights; for each panel of weights, all tokens.
template <TileWork Work>
void multiply_many(const Work& work, const Packed& x, std::size_t begin, std::size_t end, std::size_t g_begin,
                   std::size_t g_end, void* scratch) {
  bf16* const room = static_cast<bf16*>(scratch);
  float* const sums = static_cast<float*>(scratch) + kPanelBytes / sizeof(float);
  const std::size_t pairs = (g_end - g_begin + 1) / 2;
  const auto sums_of = [&](std::size_t step, std::size_t p) {
    return sums + ((step - begin) * pairs + p) * 4 * kTileFloats;
  };
  const std::size_t panel = equal_part(x.blocks(), kPanelBlocks);
  for (std::size_t block = 0; block < x.blocks(); block += panel) {
    const std::size_t blocks = std::min(panel, x.blocks() - block);
    const std::size_t part = equal_part(blocks, kPartBlocks);
    for (std::size_t step = begin; step < end; ++step) {
      Panel w = staged(work.first(step), work.second(step), x.cols, block, blocks, room);
      for (std::size_t at = 0; at < blocks; at += part) {
        const std::size_t count = std::min(part, blocks - at);
        for (std::size_t p = 0; p < pairs; ++p) {
          const bf16* tokens = x.at(g_begin + 2 * p, block + at);
          const auto run = g_begin + 2 * p + 1 < g_end ? multiply<2> : multiply<1>;
          run(w, tokens, x.blocks() * kTileElements, count, block + at == 0, sums_of(step, p));
        }
        w.first += part * kTileElements;
        w.second += part * kTileElements;
      }
    }
  }
  // Token by token, so that a row of the output is written in one go.
  for (std::size_t p = 0; p < pairs; ++p) {
    const std::size_t g = g_begin + 2 * p;
    for (std::size_t step = begin; step < end; ++step) {
      g + 1 < g_end ? store_tiles<2>(work, step, g, sums_of(step, p))
                    : store_tiles<1>(work, step, g, sums_of(step, p));
    }
  }
}

/// Few tokens, T groups: each weight is used where it lies, once, so the time is that of reading it.
template <int T, TileWork Work>
void multiply_few(const Work& work, const Packed& x, void* scratch) {
  alignas(64) float c[4 * kTileFloats];
  const std::size_t whole = x.cols / kTileInputs;
  for (std::size_t step = 0; step < work.steps(); ++step) {
    const Rows first = work.first(step);
    const Rows second = work.second(step);
    std::size_t block = 0;
    if (first.count == kTileRows && second.count == kTileRows && whole > 0) {
      const Panel w{static_cast<const bf16*>(first.w), static_cast<const bf16*>(second.w), kTileInputs,
                    x.cols * sizeof(bf16)};
      multiply<T>(w, x.at(0, 0), x.blocks() * kTileElements, whole, true, c);
      block = whole;
    }
    for (; block < x.blocks(); block += kPanelBlocks) {
      const std::size_t blocks = std::min(kPanelBlocks, x.blocks() - block);
      const Panel w = staged(first, second, x.cols, block, blocks, static_cast<bf16*>(scratch));
      multiply<T>(w, x.at(0, block), x.blocks() * kTileElements, blocks, block == 0, c);
    }
    store_tiles<T>(work, step, 0, c);
  }
}

template <TileWork Work>
void multiply_all(const Work& work, const Packed& x, void* scratch) {
  _tile_loadconfig(&kTileConfig);
  if (x.groups <= 2) {
    x.groups == 1 ? multiply_few<1>(work, x, scratch) : multiply_few<2>(work, x, scratch);
  } else {
    constexpr std::size_t most_groups = kSumTokens / kPackTokens;
    constexpr std::size_t most_steps = kSumRows / (2 * kTileRows);
    for (std::size_t step = 0; step < work.steps(); step += most_steps) {
      for (std::size_t g = 0; g < x.groups; g += most_groups) {
        multiply_many(work, x, step, std::min(work.steps(), step + most_steps), g,
                      std::min(x.groups, g + most_groups), scratch);
      }
    }
  }
  _tile_release();
}

/// silu(gate) · up goes straight to where the next product reads it. A C tile has outputs for rows and tokens
/// for columns, as a packed tile has, so nothing is transposed.
struct Gated : GatedRows {
  void store(std::size_t step, std::size_t g, const float* gate, const float* up) const {
    const std::size_t o = output(step);
    const std::size_t blocks = padded(task.gate.rows, kTileInputs) / kTileInputs;
    bf16* to = static_cast<bf16*>(task.packed) + (g * blocks + o / kTileInputs) * kTileElements +
               o % kTileInputs / 2 * kTileInputs;
    for (std::size_t i = 0; i < kTileRows; i += 2, to += kTileInputs) {
      const __m512i even = value(gate + i * 16, up + i * 16, o + i);
      const __m512i odd = value(gate + (i + 1) * 16, up + (i + 1) * 16, o + i + 1);
      _mm512_store_si512(to, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
    }
  }

  /// Output o of 16 tokens, bf16 in the lower halves.
  __m512i value(const float* gate, const float* up, std::size_t o) const {
    return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(gated_value(task, gate, up, o)));
  }
};

/// C tiles 0 to 3, A tiles 4 and 5, B tile 6.
struct Products {
  template <int J>
  static void run(const bf16* a, std::size_t a_tile, std::size_t a_step, const bf16* b, std::size_t count,
                  bool fresh, float* c) {
    // GCC's tile loads do not say that they read memory.
    asm volatile("" ::: "memory");
    if (fresh) {
      _tile_zero(0);
      if constexpr (J > 1) _tile_zero(1);
      if constexpr (J > 2) _tile_zero(2);
      if constexpr (J > 3) _tile_zero(3);
    } else {
      _tile_loadd(0, c, 64);
      if constexpr (J > 1) _tile_loadd(1, c + kTileFloats, 64);
      if constexpr (J > 2) _tile_loadd(2, c + 2 * kTileFloats, 64);
      if constexpr (J > 3) _tile_loadd(3, c + 3 * kTileFloats, 64);
    }
    for (std::size_t i = 0; i < count; ++i, a += a_step, b += kTileElements) {
      _tile_loadd(6, b, 64);
      _tile_loadd(4, a, 64);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (J > 1) {
        _tile_loadd(5, a + a_tile, 64);
        _tile_dpbf16ps(1, 5, 6);
      }
      if constexpr (J > 2) {
        _tile_loadd(4, a + 2 * a_tile, 64);
        _tile_dpbf16ps(2, 4, 6);
      }
      if constexpr (J > 3) {
        _tile_loadd(5, a + 3 * a_tile, 64);
        _tile_dpbf16ps(3, 5, 6);
      }
    }
    _tile_stored(0, c, 64);
    if constexpr (J > 1) _tile_stored(1, c + kTileFloats, 64);
    if constexpr (J > 2) _tile_stored(2, c + 2 * kTileFloats, 64);
    if constexpr (J > 3) _tile_stored(3, c + 3 * kTileFloats, 64);
    asm volatile("" ::: "memory");
  }
};

void enter() {
  _tile_loadconfig(&kTileConfig);
}
void leave() {
  _tile_release();
}

#include "attention_lanes.inc"

void matmul(const MatmulTask& task) {
  if (!is_float(task.w.dtype)) {
    return task.tokens <= kFewTokens ? avx512vnni_kernels().matmul(task) : matmul_integers(task);
  }
  if (task.w.dtype != DType::bf16) return avx512_kernels().matmul(task);
  const std::size_t groups = padded(task.tokens, kPackTokens) / kPackTokens;
  multiply_all(Outputs{task}, {static_cast<const bf16*>(task.x), task.w.cols, groups}, task.scratch);
}

void gated(const GatedTask& task) {
  if (!is_float(task.gate.dtype)) return gated_integers(task);
  const std::size_t groups = padded(task.tokens, kPackTokens) / kPackTokens;
  multiply_all(Gated{{task}}, {static_cast<const bf16*>(task.x), task.gate.cols, groups}, task.scratch);
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
    KernelTable t = avx512bf16_kernels();
    t.isa = ops::Isa::amx;
    t.packed_bytes = amx::packed_bytes;
    t.pack = amx::pack;
    t.matmul = amx::matmul;
    t.gated = amx::gated;
    t.lanes = &amx::kLaneKernels;
    t.fuses = [](DType dtype, DType next, std::size_t tokens) {
      return dtype == DType::bf16 ? next == DType::bf16 : avx512vnni_kernels().fuses(dtype, next, tokens);
    };
    return t;
  }();
  return table;
}

}  // namespace modicum::cpu
