// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <string>

#include <modicum/base/error.hpp>
#include <modicum/ops/matmul.hpp>
#include <modicum/retrofit/kv_statistics.hpp>

namespace modicum::retrofit {
namespace {

using Eigen::Index;

/// Rows that are summed in f32 before they are added in f64.
constexpr std::size_t kBlockRows = 512;
/// Rows of the value Gram that are formed by one product.
constexpr std::size_t kGramRows = 256;

Index index(std::size_t i) {
  return static_cast<Index>(i);
}

/// [rows, width] → [width, rows].
std::vector<float> transposed(ThreadPool& pool, const float* x, std::size_t rows, std::size_t width) {
  constexpr std::size_t kTile = 64;
  std::vector<float> out(rows * width);
  pool.run((width + kTile - 1) / kTile, [&](std::size_t tile) {
    const std::size_t end = std::min(width, (tile + 1) * kTile);
    for (std::size_t r = 0; r < rows; ++r) {
      for (std::size_t c = tile * kTile; c < end; ++c) out[c * rows + r] = x[r * width + c];
    }
  });
  return out;
}

}  // namespace

KvStatistics::KvStatistics(const HeadShape& shape) : shape_(shape) {
  const bool whole = shape.kv_heads > 0 && shape.heads > 0 && shape.heads % shape.kv_heads == 0;
  if (!whole || shape.head_dim == 0 || shape.head_dim % 2 != 0) {
    fail({.op = "retrofit.kv_statistics",
          .what = "heads",
          .expected = "heads that are a multiple of kv_heads, and an even head_dim",
          .got = std::to_string(shape.heads) + " heads, " + std::to_string(shape.kv_heads) + " KV heads of " +
                 std::to_string(shape.head_dim)});
  }
  const Index kv_heads = index(shape.kv_heads), half = index(shape.head_dim / 2);
  keys_.assign(shape.head_dim / 2, Eigen::MatrixXcd::Zero(kv_heads, kv_heads));
  queries_ = linalg::Matrix::Zero(half, index(shape.heads));
  values_ = linalg::Matrix::Zero(kv_heads * 2 * half, kv_heads * 2 * half);
}

void KvStatistics::update(ThreadPool& pool, const float* q, const float* k, const float* v,
                          std::size_t rows) {
  const std::size_t query_width = shape_.heads * shape_.head_dim;
  const std::size_t kv_width = shape_.kv_heads * shape_.head_dim;
  for (std::size_t first = 0; first < rows; first += kBlockRows) {
    const std::size_t block = std::min(kBlockRows, rows - first);
    add_queries(pool, q + first * query_width, block);
    add_keys(pool, k + first * kv_width, block);
    add_values(pool, v + first * kv_width, block);
  }
  count_ += rows;
}

void KvStatistics::add_queries(ThreadPool& pool, const float* q, std::size_t rows) {
  const std::size_t d = shape_.head_dim, half = d / 2;
  pool.run(shape_.heads, [&](std::size_t head) {
    std::vector<double> sums(half);
    for (std::size_t r = 0; r < rows; ++r) {
      const float* x = q + (r * shape_.heads + head) * d;
      for (std::size_t f = 0; f < half; ++f) {
        const double real = x[f], imaginary = x[f + half];
        sums[f] += real * real + imaginary * imaginary;
      }
    }
    for (std::size_t f = 0; f < half; ++f) queries_(index(f), index(head)) += sums[f];
  });
}

void KvStatistics::add_keys(ThreadPool& pool, const float* k, std::size_t rows) {
  const std::size_t heads = shape_.kv_heads, d = shape_.head_dim, half = d / 2;
  const Index n = index(heads);
  pool.run(half, [&](std::size_t f) {
    Eigen::MatrixXf x(index(rows), 2 * n);  // real parts of all heads, then imaginary parts
    for (std::size_t h = 0; h < heads; ++h) {
      for (std::size_t r = 0; r < rows; ++r) {
        const float* key = k + (r * heads + h) * d + f;
        x(index(r), index(h)) = key[0];
        x(index(r), index(h) + n) = key[half];
      }
    }
    linalg::Matrix gram = (x.transpose() * x).eval().cast<double>();
    gram.triangularView<Eigen::StrictlyUpper>() = gram.transpose();  // exactly symmetric
    const auto real = gram.topLeftCorner(n, n), both = gram.bottomLeftCorner(n, n);
    const auto imaginary = gram.bottomRightCorner(n, n);
    keys_[f].real() += real + imaginary;
    keys_[f].imag() += both - both.transpose();
  });
}

void KvStatistics::add_values(ThreadPool& pool, const float* v, std::size_t rows) {
  // The forward pass's product, whose sums do not depend on the threads, with each dimension as a row.
  const std::size_t width = shape_.kv_heads * shape_.head_dim;
  const std::vector<float> x = transposed(pool, v, rows, width);
  std::vector<float> gram(kGramRows * width);
  ops::MatmulScratch scratch;
  for (std::size_t first = 0; first < width; first += kGramRows) {
    const std::size_t count = std::min(kGramRows, width - first);
    const WeightView before{.data = x.data(), .dtype = DType::f32, .rows = first + count, .cols = rows};
    const ops::Product product[] = {{.weight = before, .y = gram.data(), .y_stride = width}};
    ops::matmul(pool, x.data() + first * rows, count, rows, product, scratch);
    pool.run(count, [&](std::size_t i) {
      double* const sums = values_.col(index(first + i)).data();
      for (std::size_t c = 0; c <= first + i; ++c) sums[c] += gram[i * width + c];
    });
  }
}

void KvStatistics::merge(const KvStatistics& other) {
  if (!(shape_ == other.shape_)) {
    fail({.op = "retrofit.kv_statistics",
          .what = "merge",
          .expected = "statistics of the same heads",
          .got = "those of others"});
  }
  count_ += other.count_;
  for (std::size_t f = 0; f < keys_.size(); ++f) keys_[f] += other.keys_[f];
  queries_ += other.queries_;
  values_ += other.values_;
}

Eigen::MatrixXcd KvStatistics::key_gram(std::size_t frequency) const {
  return keys_.at(frequency) / static_cast<double>(std::max<std::size_t>(count_, 1));
}

linalg::Matrix KvStatistics::query_energy() const {
  return queries_ / static_cast<double>(std::max<std::size_t>(count_, 1));
}

linalg::Matrix KvStatistics::value_gram() const {
  const linalg::Matrix whole = values_.selfadjointView<Eigen::Upper>();
  return whole / static_cast<double>(std::max<std::size_t>(count_, 1));
}

}  // namespace modicum::retrofit
