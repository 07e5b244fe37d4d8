// SPDX-License-Identifier: Apache-2.0
// bf16 products in tiles (AMX, TDPBF16PS): C[16 outputs, 16 tokens] += A[16 outputs, 32 inputs] · B[32
// inputs, 16 tokens]. A tile of A is 16 rows of the weights, so nothing of the model is repacked for good; B
// is the activations, which `pack` leaves as [group of 16 tokens][block of 32 inputs][16 pairs of inputs][16
// tokens][2]. An element of C is summed in f32, block by block in order, whatever stands beside it, so a
// token's result does not depend on the batch; as in the hardware's products, subnormal inputs and sums count
// as zero. Integers are in amx_int8.cpp and amx_int8_rows.cpp, everything else is AVX-512's.
#include <algorithm>
#include <bit>
#include <cmath>
#include <concepts>
#include <cstring>

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernels.hpp"
#include "target.hpp"

namespace modicum::cpu {
namespace amx {

/// Those with integer weights: amx_int8.cpp and amx_int8_rows.cpp.
void matmul_integers(const MatmulTask& task);
void gated_integers(const GatedTask& task);
std::size_t int8_rows_bytes(std::size_t tokens, std::size_t cols);
void pack_int8_rows(const float* x, std::size_t tokens, std::size_t cols, std::size_t group, void* packed);
void matmul_int8_rows(const MatmulTask& task);
void gated_int8_rows(const GatedTask& task);

constexpr std::size_t kTileInputs = 32;
constexpr std::size_t kTileElements = 16 * kTileInputs;

std::size_t packed_bytes(DType dtype, std::size_t tokens, std::size_t cols) {
  if (dtype == DType::int8_rows) return int8_rows_bytes(tokens, cols);
  if (!is_float(dtype)) return avx512vnni_kernels().packed_bytes(dtype, tokens, cols);
  if (dtype != DType::bf16) return avx512_kernels().packed_bytes(dtype, tokens, cols);
  return padded(tokens, kPackTokens) * padded(cols, kTileInputs) * sizeof(bf16);
}

}  // namespace amx
}  // namespace modicum::cpu

MODICUM_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,amx-tile,amx-bf16")
namespace modicum::cpu::amx {

using ops::kKeyTile;

#include "avx512.inc"
#include "tiles.inc"

// Build on those above.
#define MODICUM_TILE_PRODUCT(c, a, b) _tile_dpbf16ps(c, a, b)
#include "amx_products.inc"
#undef MODICUM_TILE_PRODUCT

void pack(DType dtype, const float* x, std::size_t tokens, std::size_t cols, std::size_t group,
          void* packed) {
  if (dtype == DType::int8_rows) return pack_int8_rows(x, tokens, cols, group, packed);
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

/// C tiles 0 to 3, the common operand in tile 6, others in 4 and 5.
struct Products {
  template <int J>
  static void rows(const LaneKeys& keys, const bf16* b, std::size_t count, float* c) {
    // GCC's tile loads do not say that they read memory.
    asm volatile("" ::: "memory");
    const bf16* a = keys.data;
    const std::size_t next = keys.next_keys;
    const std::size_t stride = keys.stride * sizeof(bf16);
    _tile_zero(0);
    if constexpr (J > 1) _tile_zero(1);
    if constexpr (J > 2) _tile_zero(2);
    if constexpr (J > 3) _tile_zero(3);
    for (std::size_t i = 0; i < count; ++i, a += keys.next_block, b += kTileElements) {
      _tile_loadd(6, b, 64);
      _tile_loadd(4, a, stride);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (J > 1) {
        _tile_loadd(5, a + next, stride);
        _tile_dpbf16ps(1, 5, 6);
      }
      if constexpr (J > 2) {
        _tile_loadd(4, a + 2 * next, stride);
        _tile_dpbf16ps(2, 4, 6);
      }
      if constexpr (J > 3) {
        _tile_loadd(5, a + 3 * next, stride);
        _tile_dpbf16ps(3, 5, 6);
      }
    }
    store<J>(c);
  }

  template <int J>
  static void columns(const bf16* a, std::size_t, const bf16* b, std::size_t next, std::size_t count,
                      float* c) {
    asm volatile("" ::: "memory");
    _tile_loadd(0, c, 64);
    _tile_loadd(1, c + kTileFloats, 64);
    if constexpr (J > 2) _tile_loadd(2, c + 2 * kTileFloats, 64);
    if constexpr (J > 3) _tile_loadd(3, c + 3 * kTileFloats, 64);
    for (std::size_t i = 0; i < count; ++i, a += kTileElements, b += kTileElements) {
      _tile_loadd(6, a, 64);
      _tile_loadd(4, b, 64);
      _tile_dpbf16ps(0, 6, 4);
      _tile_loadd(5, b + next, 64);
      _tile_dpbf16ps(1, 6, 5);
      if constexpr (J > 2) {
        _tile_loadd(4, b + 2 * next, 64);
        _tile_dpbf16ps(2, 6, 4);
      }
      if constexpr (J > 3) {
        _tile_loadd(5, b + 3 * next, 64);
        _tile_dpbf16ps(3, 6, 5);
      }
    }
    store<J>(c);
  }

 private:
  template <int J>
  static void store(float* c) {
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

Packed packed_of(const void* x, std::size_t cols, std::size_t groups) {
  return {static_cast<const std::uint8_t*>(x), cols * sizeof(bf16), groups,
          padded(cols, kTileInputs) / kTileInputs * kTileBytes};
}

void matmul(const MatmulTask& task) {
  if (task.w.dtype == DType::int8_rows) return matmul_int8_rows(task);
  if (!is_float(task.w.dtype)) {
    return task.tokens <= kFewTokens ? avx512vnni_kernels().matmul(task) : matmul_integers(task);
  }
  if (task.w.dtype != DType::bf16) return avx512_kernels().matmul(task);
  const std::size_t groups = padded(task.tokens, kPackTokens) / kPackTokens;
  multiply_all(Outputs{task}, packed_of(task.x, task.w.cols, groups), task.scratch);
}

void gated(const GatedTask& task) {
  if (task.gate.dtype == DType::int8_rows) return gated_int8_rows(task);
  if (!is_float(task.gate.dtype)) return gated_integers(task);
  const std::size_t groups = padded(task.tokens, kPackTokens) / kPackTokens;
  multiply_all(Gated{{task}}, packed_of(task.x, task.gate.cols, groups), task.scratch);
}

Fusion fuses(DType dtype, DType next, std::size_t tokens) {
  if (dtype == DType::bf16 && next == DType::bf16) return Fusion::packed;
  if (dtype == DType::int8_rows) return Fusion::activation;
  return avx512vnni_kernels().fuses(dtype, next, tokens);
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
    t.fuses = amx::fuses;
    return t;
  }();
  return table;
}

}  // namespace modicum::cpu
