// SPDX-License-Identifier: Apache-2.0
// Four lanes of GCC's vector extension: what any processor of the baseline runs.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "kernels.hpp"

namespace modicum::cpu::plain {

using ops::kKeyTile;

struct V {
  typedef float F __attribute__((vector_size(16)));
  static constexpr std::size_t width = 4;
  static constexpr int rows = 2;
  static F zero() { return F{}; }
  static F set1(float x) { return F{x, x, x, x}; }
  static F load(const float* p) {
    F v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  template <class T>
  static F load(const T* p) {
    return F{to_f32(p[0]), to_f32(p[1]), to_f32(p[2]), to_f32(p[3])};
  }
  static F load(const bf16* p) {
    typedef std::uint16_t Half __attribute__((vector_size(8)));
    typedef std::uint32_t Bits __attribute__((vector_size(16)));
    Half half;
    std::memcpy(&half, p, sizeof half);
    return (F)(__builtin_convertvector(half, Bits) << 16);
  }
  static void store(float* p, F v) { std::memcpy(p, &v, sizeof v); }
  static F fma(F a, F b, F c) { return a * b + c; }
  static F mul(F a, F b) { return a * b; }
  static float sum(F v) { return (v[0] + v[2]) + (v[1] + v[3]); }
  static float fma1(float a, float b, float c) { return a * b + c; }
};

#include "generic.inc"
// Builds on that.
#include "matmul.inc"

}  // namespace modicum::cpu::plain

namespace modicum::cpu {

const KernelTable& plain_kernels() {
  using namespace plain;
  static const KernelTable table{ops::Isa::plain, packed_bytes_f32, pack_f32, matmul, load_keys, scores,
                                 accumulate,      rms_norm,         silu_mul, rope,   exp_sum,   largest};
  return table;
}

}  // namespace modicum::cpu
