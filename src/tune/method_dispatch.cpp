// SPDX-License-Identifier: Apache-2.0
#include "method_dispatch.hpp"

#include <charconv>
#include <string_view>

#include <modicum/base/hash.hpp>

namespace modicum::tune {
namespace {

/// 0 at the first layer and for tensors of none, 1 at the last.
double depth_of(std::string_view tensor, std::size_t layers) {
  constexpr std::string_view kLayers = "model.layers.";
  if (!tensor.starts_with(kLayers)) return 0;
  if (layers < 2) return 1;
  std::size_t layer = 0;
  std::from_chars(tensor.data() + kLayers.size(), tensor.data() + tensor.size(), layer);
  return static_cast<double>(layer) / static_cast<double>(layers - 1);
}

bool normalizes(Method method) {
  return method == Method::linear || method == Method::ties;
}

/// What each definition does where a plan says nothing.
Rescale default_rescale(const MergePlan& plan) {
  if (plan.method != Method::dare_linear && plan.method != Method::dare_ties) return Rescale::none;
  return plan.definition == Definition::mergekit ? Rescale::l1_norm : Rescale::inverse_density;
}

double value_of(const Setting& setting, const std::string& tensor, double depth, const char* name) {
  const std::optional<double> value = setting.at(tensor, depth);
  if (!value) {
    fail({.op = "merge",
          .what = std::string(name) + " of " + quote(tensor),
          .expected = "a rule whose filter fits the name",
          .got = "none",
          .todo = "add a rule without a filter at the end"});
  }
  return *value;
}

}  // namespace

std::uint64_t mask_key(std::uint64_t seed, std::string_view tensor, std::size_t model) {
  return hash64(std::to_string(seed) + "/" + std::to_string(model) + "/" + std::string(tensor));
}

TensorSettings settings_of(const MergePlan& plan, const std::string& tensor, std::size_t layers) {
  const double depth = depth_of(tensor, layers);
  TensorSettings settings{.method = plan.method,
                          .definition = plan.definition,
                          .weights = {},
                          .densities = {},
                          .gammas = {},
                          .keys = {},
                          .lambda = static_cast<float>(value_of(plan.lambda, tensor, depth, "lambda")),
                          .t = value_of(plan.t, tensor, depth, "t"),
                          .normalize = plan.normalize.value_or(normalizes(plan.method)),
                          .rescale = plan.rescale.value_or(default_rescale(plan))};
  for (std::size_t m = 0; m < plan.models.size(); ++m) {
    const MergeInput& input = plan.models[m];
    settings.weights.push_back(static_cast<float>(value_of(input.weight, tensor, depth, "weight")));
    settings.densities.push_back(value_of(input.density, tensor, depth, "density"));
    settings.gammas.push_back(value_of(input.gamma, tensor, depth, "gamma"));
    settings.keys.push_back(mask_key(plan.seed, tensor, m));
  }
  return settings;
}

}  // namespace modicum::tune
