// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include <modicum/tensor/dtype.hpp>

namespace modicum {

/// A row-major matrix of weights that lies in somebody else's memory, usually a mapped file: [rows, cols] is
/// [outputs, inputs] of a linear layer. The data is aligned to its element size.
struct WeightView {
  const void* data = nullptr;
  DType dtype = DType::f32;
  std::size_t rows = 0;
  std::size_t cols = 0;

  bool empty() const noexcept { return data == nullptr; }
  std::size_t bytes() const { return rows * cols * size_of(dtype); }
};

/// A row-major f32 matrix that it owns.
class Matrix {
 public:
  Matrix() = default;
  Matrix(std::size_t rows, std::size_t cols) : rows_(rows), cols_(cols), data_(rows * cols) {}

  std::size_t rows() const noexcept { return rows_; }
  std::size_t cols() const noexcept { return cols_; }
  float* data() noexcept { return data_.data(); }
  const float* data() const noexcept { return data_.data(); }
  std::span<float> row(std::size_t i) { return std::span(data_).subspan(i * cols_, cols_); }
  std::span<const float> row(std::size_t i) const { return std::span(data_).subspan(i * cols_, cols_); }

 private:
  std::size_t rows_ = 0;
  std::size_t cols_ = 0;
  std::vector<float> data_;
};

}  // namespace modicum
