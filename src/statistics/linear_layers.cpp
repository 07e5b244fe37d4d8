// SPDX-License-Identifier: Apache-2.0
#include "linear_layers.hpp"

#include <cstddef>

#include <modicum/tensor/dtype.hpp>

namespace modicum {
namespace {

constexpr std::string_view kModules[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                         "self_attn.o_proj", "mlp.gate_proj",    "mlp.up_proj",
                                         "mlp.down_proj"};

}  // namespace

std::string_view module_of(Linear linear) {
  return kModules[static_cast<std::size_t>(linear)];
}

const LinearWeights& weights_of(const LayerWeights& layer, Linear linear) {
  static constexpr LinearWeights LayerWeights::* kMembers[] = {
      &LayerWeights::q,    &LayerWeights::k,  &LayerWeights::v,   &LayerWeights::o,
      &LayerWeights::gate, &LayerWeights::up, &LayerWeights::down};
  return layer.*kMembers[static_cast<std::size_t>(linear)];
}

LinearWeights& weights_of(LayerWeights& layer, Linear linear) {
  return const_cast<LinearWeights&>(weights_of(std::as_const(layer), linear));
}

std::vector<float> floats_of(const WeightView& weight) {
  std::vector<float> out(weight.rows * weight.cols);
  dispatch(weight.dtype, [&](auto tag) {
    const auto* data = static_cast<const decltype(tag)*>(weight.data);
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = to_f32(data[i]);
  });
  return out;
}

linalg::Matrix widened(const WeightView& weight) {
  using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const std::vector<float> floats = floats_of(weight);
  return Eigen::Map<const RowMajor>(floats.data(), static_cast<Eigen::Index>(weight.rows),
                                    static_cast<Eigen::Index>(weight.cols))
      .cast<double>();
}

std::pair<std::size_t, std::size_t> shape_of(const ModelConfig& config, Linear linear) {
  switch (linear) {
    case Linear::q:
      return {config.query_width(), config.hidden_size};
    case Linear::k:
    case Linear::v:
      return {config.kv_width(), config.hidden_size};
    case Linear::o:
      return {config.hidden_size, config.query_width()};
    case Linear::down:
      return {config.hidden_size, config.intermediate_size};
    default:
      return {config.intermediate_size, config.hidden_size};
  }
}

}  // namespace modicum
