// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include <modicum/tensor/dtype.hpp>

namespace modicum {

/// Integers are scaled by groups of this many columns, or a multiple of it; their matrices' columns are a
/// multiple of it as well.
inline constexpr std::size_t kQuantGroup = 32;

/// A row-major matrix of weights that lies in somebody else's memory, usually a mapped file: [rows, cols] is
/// [outputs, inputs] of a linear layer. The data is aligned to its element size. Element (r, c) of integers
/// is worth (data[r, c] − offset) · scales[r, c / group].
struct WeightView {
  const void* data = nullptr;
  DType dtype = DType::f32;
  std::size_t rows = 0;
  std::size_t cols = 0;
  const void* scales = nullptr;  ///< integers: [rows, cols / group] of `scale_dtype`
  DType scale_dtype = DType::bf16;
  std::size_t group = kQuantGroup;

  bool empty() const noexcept { return data == nullptr; }
  /// Of the data and its scales.
  std::size_t bytes() const {
    const std::size_t of_scales = is_float(dtype) ? 0 : rows * (cols / group) * size_of(scale_dtype);
    return rows * cols * bits_of(dtype) / 8 + of_scales;
  }
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
