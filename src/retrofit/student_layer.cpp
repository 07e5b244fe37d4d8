// SPDX-License-Identifier: Apache-2.0
#include "student_layer.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include <modicum/base/error.hpp>

#include "../base/quote.hpp"
#include "packed_linear.hpp"

namespace modicum::retrofit {
namespace {

std::string spelled(DType dtype) {
  return dtype == DType::bf16 ? "BF16" : dtype == DType::f16 ? "F16" : "F32";
}

}  // namespace

StudentLayer::StudentLayer(const Checkpoint& from, const LayerWeights& original, std::size_t layer,
                           DType dtype)
    : from_(&from), layer_(layer), dtype_(dtype), weights_(original) {}

std::string StudentLayer::module_name(Linear linear) const {
  return "model.layers." + std::to_string(layer_) + "." + std::string(module_of(linear));
}

NewTensor& StudentLayer::tensor(const std::string& name, std::vector<std::uint64_t> shape, DType dtype) {
  std::erase_if(tensors_, [&](const NewTensor& t) { return t.spec.name == name; });
  std::size_t count = size_of(dtype);
  for (const std::uint64_t extent : shape) count *= extent;
  tensors_.push_back({{name, spelled(dtype), std::move(shape)}, std::vector<std::byte>(count)});
  return tensors_.back();
}

void StudentLayer::set_view(Linear linear, const NewTensor& stored, std::size_t rows, std::size_t cols) {
  // Views stay valid: a vector of bytes keeps its memory when the list of tensors grows.
  weights_of(weights_, linear).weight = {
      .data = stored.bytes.data(), .dtype = dtype_, .rows = rows, .cols = cols};
}

void StudentLayer::set_matrix(Linear linear, const linalg::Matrix& matrix) {
  using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const RowMajor rows = matrix.cast<float>();
  set_matrix(linear, std::span(rows.data(), static_cast<std::size_t>(rows.size())),
             static_cast<std::size_t>(rows.rows()));
}

void StudentLayer::set_matrix(Linear linear, std::span<const float> matrix, std::size_t rows) {
  const std::size_t cols = matrix.size() / rows;
  const std::string name = module_name(linear) + ".weight";
  if (!std::all_of(matrix.begin(), matrix.end(), [](float w) { return std::isfinite(w); })) {
    fail<FormatError>({.op = "retrofit",
                       .what = "new weights of " + quote(name),
                       .expected = "finite numbers",
                       .got = "NaN or infinity",
                       .todo = "check the weights of the source"});
  }
  NewTensor& stored = tensor(name, {rows, cols}, dtype_);
  dispatch(dtype_, [&](auto tag) {
    using T = decltype(tag);
    std::transform(matrix.begin(), matrix.end(), reinterpret_cast<T*>(stored.bytes.data()),
                   [](float w) { return from_f32<T>(w); });
  });
  set_view(linear, stored, rows, cols);
}

DType StudentLayer::stored_dtype(const std::string& name) const {
  const std::string spelling = from_->contains(name) ? from_->info(name).dtype : spelled(dtype_);
  return spelling == "BF16" ? DType::bf16 : spelling == "F16" ? DType::f16 : DType::f32;
}

void StudentLayer::set_bias(Linear linear, std::span<const float> bias) {
  if (bias.empty()) return;
  weights_of(weights_, linear).bias = set_vector(module_name(linear) + ".bias", bias);
}

std::vector<float> StudentLayer::set_vector(const std::string& name, std::span<const float> values) {
  const DType dtype = stored_dtype(name);
  NewTensor& stored = tensor(name, {values.size()}, dtype);
  std::vector<float> used(values.size());
  dispatch(dtype, [&](auto tag) {
    using T = decltype(tag);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const T value = from_f32<T>(values[i]);
      reinterpret_cast<T*>(stored.bytes.data())[i] = value;
      used[i] = to_f32(value);
    }
  });
  return used;
}

void StudentLayer::divide_norm(bool attention, std::span<const float> scales) {
  std::vector<float>& norm = attention ? weights_.input_norm : weights_.post_attention_norm;
  std::vector<float> divided = norm;
  for (std::size_t i = 0; i < divided.size(); ++i) divided[i] /= scales[i];
  const char* const name = attention ? "input_layernorm" : "post_attention_layernorm";
  norm = set_vector("model.layers." + std::to_string(layer_) + "." + name + ".weight", divided);
}

void StudentLayer::set_factors(Linear linear, const linalg::Matrix& u, const linalg::Matrix& v) {
  const std::string module = module_name(linear);
  set_matrix(linear, u * v);
  const auto product = std::find_if(tensors_.begin(), tensors_.end(),
                                    [&](const NewTensor& t) { return t.spec.name == module + ".weight"; });
  products_.push_back(std::move(product->bytes));
  tensors_.erase(product);
  for (const auto& [suffix, factor] : {std::pair(".weight_u", &u), std::pair(".weight_v", &v)}) {
    const auto& matrix = *factor;
    const auto rows = static_cast<std::uint64_t>(matrix.rows());
    const auto cols = static_cast<std::uint64_t>(matrix.cols());
    NewTensor& stored = tensor(module + suffix, {rows, cols}, dtype_);
    dispatch(dtype_, [&](auto tag) {
      using T = decltype(tag);
      auto* out = reinterpret_cast<T*>(stored.bytes.data());
      for (Eigen::Index r = 0; r < matrix.rows(); ++r) {
        for (Eigen::Index c = 0; c < matrix.cols(); ++c)
          *out++ = from_f32<T>(static_cast<float>(matrix(r, c)));
      }
    });
  }
}

void StudentLayer::set_rounded(Linear linear, const RoundedMatrix& matrix) {
  const QuantizedModule module{module_name(linear), matrix.bits, matrix.group};
  const std::vector<TensorSpec> specs = packed_specs(module, matrix.rows, matrix.cols, spelled(dtype_));
  std::vector<std::vector<std::byte>> bytes = pack_linear(matrix, dtype_);
  std::erase_if(tensors_, [&](const NewTensor& t) { return t.spec.name == module.name + ".weight"; });
  WeightView view{.rows = matrix.rows,
                  .cols = matrix.cols,
                  .scale_dtype = dtype_,
                  .group = matrix.group == 0 ? matrix.cols : matrix.group};
  view.dtype = matrix.group == 0 ? DType::int8_rows : matrix.bits == 4 ? DType::uint4 : DType::uint8;
  view.data = bytes[0].data();
  view.scales = bytes[1].data();
  for (std::size_t i = 0; i < specs.size(); ++i) tensors_.push_back({specs[i], std::move(bytes[i])});
  weights_of(weights_, linear).weight = view;
}

void StudentLayer::keep_rows(Linear linear, std::span<const std::size_t> rows) {
  const WeightView old = weights_of(weights_, linear).weight;
  const std::size_t row_bytes = old.cols * size_of(old.dtype);
  std::vector<std::byte> bytes(rows.size() * row_bytes);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    std::memcpy(bytes.data() + i * row_bytes, static_cast<const std::byte*>(old.data) + rows[i] * row_bytes,
                row_bytes);
  }
  const std::vector<float> old_bias = weights_of(weights_, linear).bias;
  NewTensor& stored = tensor(module_name(linear) + ".weight", {rows.size(), old.cols}, dtype_);
  stored.bytes = std::move(bytes);
  set_view(linear, stored, rows.size(), old.cols);
  std::vector<float> bias;
  for (const std::size_t row : old_bias.empty() ? std::span<const std::size_t>() : rows) {
    bias.push_back(old_bias[row]);
  }
  set_bias(linear, bias);
}

}  // namespace modicum::retrofit
