// SPDX-License-Identifier: Apache-2.0
// The one place where a plan's method becomes a type.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <modicum/base/error.hpp>
#include <modicum/tune/breadcrumbs.hpp>
#include <modicum/tune/dare.hpp>
#include <modicum/tune/linear.hpp>
#include <modicum/tune/merge.hpp>
#include <modicum/tune/merge_plan.hpp>
#include <modicum/tune/slerp.hpp>
#include <modicum/tune/task_arithmetic.hpp>
#include <modicum/tune/ties.hpp>

#include "../base/quote.hpp"

namespace modicum::tune {

/// A plan's numbers for one tensor.
struct TensorSettings {
  Method method;
  Definition definition;
  std::vector<float> weights;
  std::vector<double> densities, gammas;
  std::vector<std::uint64_t> keys;  ///< of random masks
  float lambda = 1;
  double t = 0.5;
  bool normalize = false;
  Rescale rescale = Rescale::none;
};

/// What TIES of the paper knows of the whole model.
struct WholeModel {
  std::vector<RankCut> cuts;
  bool zero_is_positive = true;
};

TensorSettings settings_of(const MergePlan& plan, const std::string& tensor, std::size_t layers);

/// Calls f(method): a new method is one line here. `whole`: of TIES as the paper defines it, else null.
template <class F>
decltype(auto) with_method(const TensorSettings& s, const WholeModel* whole, F&& f) {
  const auto sum = [&] { return WeightedSum(s.weights, s.normalize); };
  const auto vote = [&] {
    return SignElection(s.weights, s.definition, s.normalize, whole == nullptr || whole->zero_is_positive);
  };
  const auto trim = [&] {
    return whole != nullptr ? MagnitudeTrim(whole->cuts) : MagnitudeTrim(s.densities, s.definition);
  };
  const auto drop = [&] { return RandomDrop(s.densities, s.keys, s.rescale); };
  const auto band = [&] { return OutlierTrim(s.densities, s.gammas); };
  switch (s.method) {
    case Method::linear:
      return f(LinearMerge(s.weights, s.normalize));
    case Method::slerp:
      return f(Slerp(s.t));
    case Method::task_arithmetic:
      return f(TaskArithmetic({}, sum(), s.lambda));
    case Method::ties:
      return f(Ties(trim(), vote(), s.lambda));
    case Method::magnitude_prune:
      return f(MagnitudePrune(trim(), sum(), s.lambda));
    case Method::dare_linear:
      return f(DareLinear(drop(), sum(), s.lambda));
    case Method::dare_ties:
      return f(DareTies(drop(), vote(), s.lambda));
    case Method::breadcrumbs:
      return f(Breadcrumbs(band(), sum(), s.lambda));
    case Method::breadcrumbs_ties:
      break;
  }
  return f(BreadcrumbsTies(band(), vote(), s.lambda));
}

}  // namespace modicum::tune
