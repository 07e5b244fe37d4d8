// SPDX-License-Identifier: Apache-2.0
#include <modicum/ops/matmul.hpp>

#include <algorithm>
#include <string>

#include <modicum/base/error.hpp>

#include "../cpu/kernels.hpp"

namespace modicum::ops {
namespace {

/// Outputs that one task computes: enough tasks to even out threads of unequal speed, each a multiple of the widest
/// kernel's 32 outputs.
constexpr std::size_t kOutputBlock = 32;
constexpr std::size_t kTasksPerThread = 8;

void check(std::size_t cols, std::span<const Product> products) {
  for (const Product& product : products) {
    if (product.weight.cols != cols || product.weight.dtype != products[0].weight.dtype) {
      fail({.op = "matmul", .what = "weight",
            .expected = std::to_string(cols) + " columns of " + std::string(name_of(products[0].weight.dtype)),
            .got = std::to_string(product.weight.cols) + " columns of " +
                   std::string(name_of(product.weight.dtype))});
    }
  }
}

std::size_t block_size(std::size_t rows, std::size_t threads) {
  const std::size_t share = rows / (threads * kTasksPerThread);
  return std::max(kOutputBlock, share / kOutputBlock * kOutputBlock);
}

}  // namespace

void matmul(ThreadPool& pool, const float* x, std::size_t tokens, std::size_t cols,
            std::span<const Product> products, MatmulScratch& scratch) {
  if (tokens == 0 || products.empty()) return;
  check(cols, products);
  const cpu::KernelTable& kernels = cpu::kernels();
  const DType dtype = products[0].weight.dtype;
  const std::size_t bytes = kernels.packed_bytes(dtype, tokens, cols);
  scratch.words.resize(std::max(scratch.words.size(), (bytes + cpu::kAlignment) / sizeof(std::uint64_t) + 1));
  const auto address = reinterpret_cast<std::uintptr_t>(scratch.words.data());
  void* const packed = reinterpret_cast<void*>(cpu::padded(address, cpu::kAlignment));
  const std::size_t groups = cpu::padded(tokens, cpu::kPackTokens) / cpu::kPackTokens;
  pool.run(groups, [&](std::size_t g) { kernels.pack(dtype, x, tokens, cols, g, packed); });

  std::size_t total = 0;
  for (const Product& product : products) total += product.weight.rows;
  const std::size_t block = block_size(total, pool.size());
  std::size_t tasks = 0;
  for (const Product& product : products) tasks += (product.weight.rows + block - 1) / block;
  pool.run(tasks, [&](std::size_t task) {
    const Product* product = products.data();
    for (std::size_t n; task >= (n = (product->weight.rows + block - 1) / block); ++product) task -= n;
    kernels.matmul({.dtype = dtype, .x = packed, .tokens = tokens, .cols = cols, .w = product->weight.data,
                    .o_begin = task * block, .o_end = std::min(product->weight.rows, (task + 1) * block),
                    .bias = product->bias, .y = product->y, .y_stride = product->y_stride, .add = product->add});
  });
}

}  // namespace modicum::ops
