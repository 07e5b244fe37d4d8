// SPDX-License-Identifier: Apache-2.0
#include "finite_weights.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <utility>
#include <vector>

#include <modicum/base/error.hpp>
#include <modicum/tensor/dtype.hpp>

#include "../base/quote.hpp"
#include "student_layer.hpp"

namespace modicum::retrofit {
namespace {

void refuse(const std::string& name) {
  fail<FormatError>({.op = "retrofit",
                     .what = quote(name),
                     .expected = "finite numbers",
                     .got = "NaN or infinity",
                     .todo = "check the weights of the source"});
}

void check_vector(const std::string& name, const std::vector<float>& values) {
  if (!std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); })) refuse(name);
}

}  // namespace

void check_finite(const std::string& name, const WeightView& matrix, ThreadPool& pool) {
  std::atomic<bool> finite{true};
  dispatch(matrix.dtype, [&](auto tag) {
    const auto* const data = static_cast<const decltype(tag)*>(matrix.data);
    pool.run(matrix.rows, [&](std::size_t r) {
      const auto* const row = data + r * matrix.cols;
      if (!std::all_of(row, row + matrix.cols, [](auto w) { return std::isfinite(to_f32(w)); })) {
        finite = false;
      }
    });
  });
  if (!finite) refuse(name);
}

void check_finite(const LayerWeights& layer, std::size_t number, ThreadPool& pool) {
  const std::string prefix = "model.layers." + std::to_string(number) + ".";
  for (const auto& [name, norm] :
       {std::pair("input_layernorm", &layer.input_norm),
        std::pair("post_attention_layernorm", &layer.post_attention_norm),
        std::pair("self_attn.q_norm", &layer.q_norm), std::pair("self_attn.k_norm", &layer.k_norm)}) {
    check_vector(prefix + name + ".weight", *norm);
  }
  for (const Linear linear : kLinears) {
    const std::string module = prefix + std::string(module_of(linear));
    check_finite(module + ".weight", weights_of(layer, linear).weight, pool);
    check_vector(module + ".bias", weights_of(layer, linear).bias);
  }
}

}  // namespace modicum::retrofit
