// SPDX-License-Identifier: Apache-2.0
// A decoder layer that is being changed.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <modicum/io/checkpoint.hpp>
#include <modicum/linalg/dense.hpp>
#include <modicum/model/weights.hpp>
#include <modicum/retrofit/round_matrix.hpp>

#include "../statistics/linear_layers.hpp"

namespace modicum::retrofit {

/// A tensor of the output that the source does not hold in this form.
struct NewTensor {
  TensorSpec spec;
  std::vector<std::byte> bytes;
};

/// The weights of a layer, and the tensors in which they differ from the source: what is set is rounded to
/// the type that the source stores (matrices: to that of the model), and the forward pass uses it so.
class StudentLayer {
 public:
  StudentLayer(const Checkpoint& from, const LayerWeights& original, std::size_t layer, DType dtype);

  const LayerWeights& weights() const noexcept { return weights_; }
  void set_matrix(Linear linear, const linalg::Matrix& matrix);
  /// Of [rows, …] row-major.
  void set_matrix(Linear linear, std::span<const float> matrix, std::size_t rows);
  /// `bias` may be empty: then there is none, as before.
  void set_bias(Linear linear, std::span<const float> bias);
  /// Rows of a linear layer and its bias in a new order, or some of them; bits are kept.
  void keep_rows(Linear linear, std::span<const std::size_t> rows);

  /// Two factors u [rows, rank] and v [rank, cols]; the forward pass here uses their product.
  void set_factors(Linear linear, const linalg::Matrix& u, const linalg::Matrix& v);
  /// Integers, with scales of the model's type.
  void set_rounded(Linear linear, const RoundedMatrix& matrix);
  /// The weight of the norm before attention (else: before the feed-forward layer) over `scales`.
  void divide_norm(bool attention, std::span<const float> scales);

  std::string module_name(Linear linear) const;
  /// What is new, in the order in which it was set last; the object is of no more use then.
  std::vector<NewTensor> take() { return std::move(tensors_); }

 private:
  NewTensor& tensor(const std::string& name, std::vector<std::uint64_t> shape, DType dtype);
  void set_view(Linear linear, const NewTensor& stored, std::size_t rows, std::size_t cols);
  DType stored_dtype(const std::string& name) const;
  /// Returns the values as they were rounded.
  std::vector<float> set_vector(const std::string& name, std::span<const float> values);

  const Checkpoint* from_;
  std::size_t layer_;
  DType dtype_;
  LayerWeights weights_;
  std::vector<NewTensor> tensors_;
  std::vector<std::vector<std::byte>> products_;  ///< of factors, which no tensor holds
};

}  // namespace modicum::retrofit
