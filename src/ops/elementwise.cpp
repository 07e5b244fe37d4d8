// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include <modicum/ops/elementwise.hpp>

#include "../cpu/kernels.hpp"

namespace modicum::ops {
namespace {

/// Fewer elements than this are not worth waking another thread.
constexpr std::size_t kGrain = 16384;

/// Calls body(begin, end) over [0, count) in pieces of at least `grain`.
template <class Body>
void in_pieces(ThreadPool& pool, std::size_t count, std::size_t grain, const Body& body) {
  grain = std::max<std::size_t>(grain, 1);
  const std::size_t pieces = (count + grain - 1) / grain;
  pool.run(pieces, [&](std::size_t i) { body(i * grain, std::min(count, (i + 1) * grain)); });
}

}  // namespace

void rms_norm(ThreadPool& pool, const float* x, std::span<const float> weight, float eps, std::size_t rows,
              float* y) {
  const std::size_t n = weight.size();
  in_pieces(pool, rows, kGrain / std::max<std::size_t>(n, 1), [&](std::size_t begin, std::size_t end) {
    for (std::size_t r = begin; r < end; ++r)
      cpu::kernels().rms_norm(x + r * n, weight.data(), eps, n, y + r * n);
  });
}

void silu_mul(ThreadPool& pool, float* gate, const float* up, std::size_t count) {
  in_pieces(pool, count, kGrain, [&](std::size_t begin, std::size_t end) {
    cpu::kernels().silu_mul(gate + begin, up + begin, end - begin);
  });
}

void rope(ThreadPool& pool, float* x, std::size_t rows, std::size_t heads, std::size_t head_dim,
          std::size_t stride, const float* cos, const float* sin) {
  const std::size_t half = head_dim / 2;
  in_pieces(pool, rows, kGrain / std::max<std::size_t>(heads * head_dim, 1),
            [&](std::size_t begin, std::size_t end) {
              for (std::size_t r = begin; r < end; ++r) {
                cpu::kernels().rope(x + r * stride, cos + r * half, sin + r * half, heads, head_dim);
              }
            });
}

void gather_rows(const WeightView& table, std::span<const std::int32_t> ids, float* out) {
  dispatch(table.dtype, [&](auto t) {
    using T = decltype(t);
    for (std::size_t r = 0; r < ids.size(); ++r) {
      const T* row = static_cast<const T*>(table.data) + static_cast<std::size_t>(ids[r]) * table.cols;
      for (std::size_t i = 0; i < table.cols; ++i) out[r * table.cols + i] = to_f32(row[i]);
    }
  });
}

}  // namespace modicum::ops
