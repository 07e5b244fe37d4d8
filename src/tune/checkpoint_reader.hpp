// SPDX-License-Identifier: Apache-2.0
// A tensor of the models of a merge, in tiles of whole rows.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <modicum/tensor/matrix.hpp>
#include <modicum/tune/tensor_tiles.hpp>

#include "merge_inputs.hpp"

namespace modicum::tune {

/// Elements of f32, bf16 or f16 as f32. Returns whether all are finite.
bool widen(DType dtype, const void* data, std::size_t count, float* out);

class CheckpointReader final : public TensorReader {
 public:
  /// `tensor`: one of `inputs.specs()`. `pulse` is called before each tile, from any thread, and may throw.
  CheckpointReader(const MergeInputs& inputs, const TensorSpec& tensor, std::function<void()> pulse = {});

  std::size_t models() const override { return models_.size(); }
  std::uint64_t elements() const override { return std::uint64_t{rows_} * cols_; }
  std::size_t tiles() const override { return (rows_ + tile_rows_ - 1) / tile_rows_; }
  /// With the model that is built upon in `onto`. Throws `FormatError` for what is not finite.
  Tile read(std::size_t tile, Buffer& buffer) const override;

  std::size_t rows() const noexcept { return rows_; }
  std::size_t cols() const noexcept { return cols_; }

 private:
  struct View {
    const Source* source = nullptr;
    std::string stored;
    WeightView weight;
    std::optional<LowRankUpdate> update;
    const std::vector<std::int64_t>* row_of = nullptr;  ///< null: each row is where it is in the result
  };

  View open(const Source& source, std::size_t index, const MergeInputs& inputs) const;
  void read_rows(const View& view, std::size_t first, std::size_t count, float* out) const;
  void read_row(const View& view, std::size_t row, std::size_t count, float* out) const;
  /// Of rows from `row` on that hold a number that is not finite.
  [[noreturn]] void refuse_numbers(const View& view, std::size_t row, const float* out) const;
  void fill_absent(std::size_t first, std::size_t count, const std::vector<float*>& slots) const;
  bool has(std::size_t view, std::size_t row) const;

  std::string name_;
  std::size_t rows_ = 0, cols_ = 0, tile_rows_ = 1;
  std::vector<View> views_;  ///< of distinct sources
  std::size_t base_ = MergeInputs::kNone;
  std::size_t onto_ = 0;
  std::vector<std::size_t> models_;
  bool mapped_ = false;
  std::function<void()> pulse_;
};

}  // namespace modicum::tune
