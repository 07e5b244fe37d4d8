// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <numeric>

#include <modicum/ops/matmul.hpp>
#include <modicum/retrofit/round.hpp>
#include <modicum/retrofit/round_matrix.hpp>

#include "round_checks.hpp"

namespace modicum::retrofit {
namespace {

constexpr std::string_view kOp = "retrofit.round_nearest";
/// Columns of the Gram that are in f32 at a time.
constexpr std::size_t kSlab = 256;

double square_sum(std::span<const float> values) {
  return std::inner_product(values.begin(), values.end(), values.begin(), 0.0, std::plus<>(),
                            [](float a, float b) { return static_cast<double>(a) * b; });
}

}  // namespace

std::vector<float> dequantize(const RoundedMatrix& matrix) {
  std::vector<float> values(matrix.integers.size());
  const std::size_t group = matrix.cols / matrix.groups();
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>(matrix.integers[i]) * matrix.scales[i / group];
  }
  return values;
}

double output_energy(std::span<const float> weights, std::size_t rows, const linalg::Matrix& gram,
                     ThreadPool& pool) {
  const std::size_t cols = weights.size() / rows;
  std::vector<float> slab(std::min(kSlab, cols) * cols);
  std::vector<float> products(rows * std::min(kSlab, cols));
  std::vector<double> sums(rows, 0.0);
  ops::MatmulScratch scratch;
  for (std::size_t begin = 0; begin < cols; begin += kSlab) {
    const std::size_t width = std::min(kSlab, cols - begin);
    // A column of the symmetric Gram is a row of the product's weights.
    std::copy_n(gram.data() + begin * cols, width * cols, slab.begin());
    const ops::Product product{
        .weight = {.data = slab.data(), .dtype = DType::f32, .rows = width, .cols = cols},
        .y = products.data(),
        .y_stride = width};
    ops::matmul(pool, weights.data(), rows, cols, {&product, 1}, scratch);
    pool.run(rows, [&](std::size_t r) {
      const float* y = products.data() + r * width;
      const float* w = weights.data() + r * cols + begin;
      for (std::size_t i = 0; i < width; ++i) sums[r] += static_cast<double>(y[i]) * w[i];
    });
  }
  return std::max(0.0, std::accumulate(sums.begin(), sums.end(), 0.0));
}

RoundedMatrix round_nearest(std::span<const float> weights, std::size_t rows, std::size_t cols,
                            const RoundOptions& options, const linalg::Matrix* gram, ThreadPool& pool) {
  check_weights(kOp, weights, rows, cols);
  check_round_options(kOp, options, cols);
  if (gram != nullptr) check_gram(kOp, *gram, cols);
  RoundedMatrix out{.rows = rows, .cols = cols, .bits = options.bits, .group = options.group};
  const std::size_t group = cols / out.groups();
  out.integers.resize(weights.size());
  out.scales.resize(rows * out.groups());
  std::vector<float> error(weights.size());
  pool.run(rows, [&](std::size_t r) {
    for (std::size_t begin = r * cols; begin < (r + 1) * cols; begin += group) {
      const std::span<std::int8_t> integers = std::span(out.integers).subspan(begin, group);
      const float scale =
          round_group(weights.subspan(begin, group), options.bits, options.scale_dtype, integers);
      out.scales[begin / group] = scale;
      for (std::size_t i = 0; i < group; ++i) {
        error[begin + i] = weights[begin + i] - scale * static_cast<float>(integers[i]);
      }
    }
  });
  out.error = gram == nullptr ? square_sum(error) : output_energy(error, rows, *gram, pool);
  out.energy = gram == nullptr ? square_sum(weights) : output_energy(weights, rows, *gram, pool);
  return out;
}

}  // namespace modicum::retrofit
