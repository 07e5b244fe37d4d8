// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <memory>
#include <string>

#include <modicum/base/error.hpp>
#include <modicum/ops/elementwise.hpp>
#include <modicum/ops/matmul.hpp>

#include "../cpu/kernels.hpp"

namespace modicum::ops {
namespace {

/// Outputs that one task computes: enough tasks to even out threads of unequal speed, each a multiple of the
/// widest kernel's 32 outputs, and not more than what that kernel reads its activations once for. Few tokens
/// make short tasks, of which the last one's end is waited for all the same, so there are more of them.
constexpr std::size_t kOutputBlock = 32;
constexpr std::size_t kMostOutputs = 256;
constexpr std::size_t kTasksPerThread = 4;
constexpr std::size_t kShortTasksPerThread = 8;
constexpr std::size_t kFewTokens = 32;

void check(std::string_view op, const WeightView& weight, std::size_t rows, std::size_t cols, DType dtype) {
  const auto describe = [](std::size_t r, std::size_t c, DType d) {
    return std::to_string(r) + " × " + std::to_string(c) + " of " + std::string(name_of(d));
  };
  if (weight.rows != rows || weight.cols != cols || weight.dtype != dtype) {
    fail({.op = op,
          .what = "weight",
          .expected = describe(rows, cols, dtype),
          .got = describe(weight.rows, weight.cols, weight.dtype)});
  }
  if (is_float(dtype)) return;
  const bool whole = weight.group != 0 && weight.group % kQuantGroup == 0 && cols % weight.group == 0 &&
                     (dtype != DType::int8_rows || weight.group == cols);
  if (!whole || weight.scales == nullptr || !is_float(weight.scale_dtype)) {
    fail({.op = op,
          .what = "integer weight of " + std::to_string(cols) + " columns",
          .expected = "scales by groups of a multiple of 32 columns that divides them",
          .got = weight.scales == nullptr ? "no scales" : "groups of " + std::to_string(weight.group)});
  }
}

std::size_t block_size(std::size_t rows, std::size_t tokens, std::size_t threads) {
  const std::size_t share =
      rows / (threads * (tokens <= kFewTokens ? kShortTasksPerThread : kTasksPerThread));
  return std::clamp(share / kOutputBlock * kOutputBlock, kOutputBlock, kMostOutputs);
}

/// Room for `bytes` within `words`, aligned for kernels.
void* room(MatmulScratch::Words& words, std::size_t bytes) {
  const std::size_t need = (bytes + cpu::kAlignment) / sizeof(std::uint64_t) + 1;
  if (words.size() < need) words.resize(need);
  return reinterpret_cast<void*>(
      cpu::padded(reinterpret_cast<std::uintptr_t>(words.data()), cpu::kAlignment));
}

void* scratch_of_this_thread() {
  struct alignas(cpu::kAlignment) Scratch {
    std::byte bytes[cpu::kMatmulScratch];
  };
  thread_local const std::unique_ptr<Scratch> scratch(new Scratch);
  return scratch.get();
}

void* pack(ThreadPool& pool, DType dtype, const float* x, std::size_t tokens, std::size_t cols,
           MatmulScratch::Words& words) {
  const cpu::KernelTable& kernels = cpu::kernels();
  void* const packed = room(words, kernels.packed_bytes(dtype, tokens, cols));
  const std::size_t groups = cpu::padded(tokens, cpu::kPackTokens) / cpu::kPackTokens;
  pool.run(groups, [&](std::size_t g) { kernels.pack(dtype, x, tokens, cols, g, packed); });
  return packed;
}

void multiply(ThreadPool& pool, const void* packed, std::size_t tokens, std::span<const Product> products) {
  std::size_t total = 0;
  for (const Product& product : products) total += product.weight.rows;
  const std::size_t block = block_size(total, tokens, pool.size());
  std::size_t tasks = 0;
  for (const Product& product : products) tasks += (product.weight.rows + block - 1) / block;
  pool.run(tasks, [&](std::size_t task) {
    const Product* product = products.data();
    for (std::size_t n; task >= (n = (product->weight.rows + block - 1) / block); ++product) task -= n;
    cpu::kernels().matmul({.x = packed,
                           .tokens = tokens,
                           .w = product->weight,
                           .o_begin = task * block,
                           .o_end = std::min(product->weight.rows, (task + 1) * block),
                           .bias = product->bias,
                           .y = product->y,
                           .y_stride = product->y_stride,
                           .add = product->add,
                           .scratch = scratch_of_this_thread()});
  });
}

/// silu(x gateᵀ) · (x upᵀ), packed for the next product.
const void* gated(ThreadPool& pool, const float* x, std::size_t tokens, const SwigluWeights& w,
                  MatmulScratch& scratch) {
  const std::size_t inner = w.gate.rows;
  const DType dtype = w.gate.dtype;
  const cpu::KernelTable& kernels = cpu::kernels();
  const void* const packed = pack(pool, dtype, x, tokens, w.gate.cols, scratch.words);
  const cpu::Fusion fusion = kernels.fuses(dtype, w.down.dtype, tokens);
  if (fusion != cpu::Fusion::packed) scratch.gate.resize(std::max(scratch.gate.size(), tokens * inner));
  if (fusion == cpu::Fusion::none) {
    scratch.up.resize(std::max(scratch.up.size(), tokens * inner));
    const Product products[] = {{w.gate, w.gate_bias, scratch.gate.data(), inner},
                                {w.up, w.up_bias, scratch.up.data(), inner}};
    multiply(pool, packed, tokens, products);
    silu_mul(pool, scratch.gate.data(), scratch.up.data(), tokens * inner);
    return pack(pool, w.down.dtype, scratch.gate.data(), tokens, inner, scratch.hidden);
  }
  void* const hidden = fusion == cpu::Fusion::packed
                           ? room(scratch.hidden, kernels.packed_bytes(w.down.dtype, tokens, inner))
                           : nullptr;
  const std::size_t end = cpu::padded(inner, kOutputBlock);
  const std::size_t block = std::min(block_size(inner, tokens, pool.size()), kMostOutputs / 2);
  pool.run((end + block - 1) / block, [&](std::size_t task) {
    kernels.gated({.x = packed,
                   .tokens = tokens,
                   .gate = w.gate,
                   .up = w.up,
                   .next = w.down.dtype,
                   .o_begin = task * block,
                   .o_end = std::min(end, (task + 1) * block),
                   .gate_bias = w.gate_bias,
                   .up_bias = w.up_bias,
                   .packed = hidden,
                   .y = scratch.gate.data(),
                   .scratch = scratch_of_this_thread()});
  });
  if (fusion == cpu::Fusion::packed) return hidden;
  return pack(pool, w.down.dtype, scratch.gate.data(), tokens, inner, scratch.hidden);
}

}  // namespace

void matmul(ThreadPool& pool, const float* x, std::size_t tokens, std::size_t cols,
            std::span<const Product> products, MatmulScratch& scratch) {
  if (tokens == 0 || products.empty()) return;
  const DType dtype = products[0].weight.dtype;
  for (const Product& product : products) check("matmul", product.weight, product.weight.rows, cols, dtype);
  multiply(pool, pack(pool, dtype, x, tokens, cols, scratch.words), tokens, products);
}

void swiglu(ThreadPool& pool, const float* x, std::size_t tokens, const SwigluWeights& weights, float* y,
            MatmulScratch& scratch) {
  const auto& [rows, cols] = std::pair(weights.gate.rows, weights.gate.cols);
  check("swiglu", weights.up, rows, cols, weights.gate.dtype);
  check("swiglu", weights.gate, rows, cols, weights.gate.dtype);
  check("swiglu", weights.down, cols, rows, weights.down.dtype);
  if (tokens == 0) return;
  const void* const hidden = gated(pool, x, tokens, weights, scratch);
  const Product down[] = {{weights.down, weights.down_bias, y, cols, true}};
  multiply(pool, hidden, tokens, down);
}

}  // namespace modicum::ops
