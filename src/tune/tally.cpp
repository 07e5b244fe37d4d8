// SPDX-License-Identifier: Apache-2.0
#include "tally.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <numeric>

#include <modicum/base/error.hpp>
#include <modicum/base/lane_sum.hpp>

#include "../base/json.hpp"
#include "../base/quote.hpp"
#include "merge_inputs.hpp"

namespace modicum::tune {
namespace {

[[noreturn]] void refuse_value(const std::string& tensor, float value, DType dtype) {
  const bool range = std::isfinite(value);
  fail<FormatError>(
      {.op = "merge",
       .what = "tensor " + quote(tensor) + " of the result",
       .expected = range ? "numbers within the range of " + std::string(name_of(dtype)) : "finite numbers",
       .got = range ? std::to_string(value) : "NaN or infinity",
       .todo = range ? "ask for another dtype: bf16 or f32" : "check weights and lambda"});
}

template <class T>
MergedKind store_as(const float* values, const float* before, std::size_t count, T* to,
                    const std::string& tensor, DType dtype) {
  Lanes square{}, change{}, stored_change{}, product{};
  std::array<std::uint64_t, kLanes> changed{}, moved{};
  for_each_lane(count, [&](std::size_t i, std::size_t lane) {
    const float value = values[i], old = before[i];
    to[i] = from_f32<T>(value);
    const float stored = to_f32(to[i]);
    const double meant = static_cast<double>(value) - static_cast<double>(old);
    const double done = static_cast<double>(stored) - static_cast<double>(old);
    changed[lane] += value != old ? 1u : 0u;
    moved[lane] += value != old && stored != old ? 1u : 0u;
    square[lane] += static_cast<double>(old) * old;
    change[lane] += meant * meant;
    stored_change[lane] += done * done;
    product[lane] += meant * done;
  });
  MergedKind sums{.elements = count,
                  .changed = std::accumulate(changed.begin(), changed.end(), std::uint64_t{0}),
                  .moved = std::accumulate(moved.begin(), moved.end(), std::uint64_t{0}),
                  .square = sum(square),
                  .change = sum(change),
                  .stored_change = sum(stored_change),
                  .product = sum(product)};
  if (!std::isfinite(sums.stored_change)) {
    for (std::size_t i = 0; i < count; ++i) {
      if (!std::isfinite(to_f32(to[i]))) refuse_value(tensor, values[i], dtype);
    }
  }
  return sums;
}

Json json_of(const MergedKind& k) {
  return {{"kind", k.kind},         {"tensors", k.tensors},
          {"elements", k.elements}, {"changed", k.changed},
          {"moved", k.moved},       {"square", k.square},
          {"change", k.change},     {"stored_change", k.stored_change},
          {"product", k.product}};
}

}  // namespace

std::string kind_of(const std::string& tensor) {
  if (tensor == kEmbedding) return "embedding";
  if (tensor == kHead) return "head";
  constexpr std::string_view kMatrix = "_proj.weight";
  if (!tensor.ends_with(kMatrix)) return "others";
  const std::string module = tensor.substr(0, tensor.rfind('.'));
  return module.substr(module.rfind('.') + 1);
}

MergedKind store_values(const float* values, const float* before, std::size_t count, DType dtype,
                        std::byte* to, const std::string& tensor) {
  return dispatch(dtype, [&](auto tag) {
    return store_as(values, before, count, reinterpret_cast<decltype(tag)*>(to), tensor, dtype);
  });
}

void MergedKind::add(const MergedKind& other) {
  tensors += other.tensors;
  elements += other.elements;
  changed += other.changed;
  moved += other.moved;
  square += other.square;
  change += other.change;
  stored_change += other.stored_change;
  product += other.product;
}

void Tally::add(const std::string& tensor, const MergedKind& sums) {
  const std::string kind = kind_of(tensor);
  auto found = std::ranges::find_if(kinds_, [&](const MergedKind& k) { return k.kind == kind; });
  if (found == kinds_.end()) found = kinds_.insert(kinds_.end(), {.kind = kind});
  found->add(sums);
  ++found->tensors;
}

std::string Tally::to_text() const {
  Json json = Json::array();
  for (const MergedKind& kind : kinds_) json.push_back(json_of(kind));
  return json.dump();
}

Tally Tally::from_text(const std::string& text) {
  Tally tally;
  if (text.empty()) return tally;
  for (const Json& k : Json::parse(text)) {
    tally.kinds_.push_back({.kind = k.at("kind").get<std::string>(),
                            .tensors = k.at("tensors").get<std::size_t>(),
                            .elements = k.at("elements").get<std::uint64_t>(),
                            .changed = k.at("changed").get<std::uint64_t>(),
                            .moved = k.at("moved").get<std::uint64_t>(),
                            .square = k.at("square").get<double>(),
                            .change = k.at("change").get<double>(),
                            .stored_change = k.at("stored_change").get<double>(),
                            .product = k.at("product").get<double>()});
  }
  return tally;
}

std::string MergeReport::to_json(const MergePlan& plan) const {
  Json list = Json::array();
  for (const MergedKind& kind : kinds) list.push_back(json_of(kind));
  Json vocabulary = {{"rows", rows}, {"matched_by_token", matched}};
  if (unchecked) vocabulary["unchecked"] = true;
  for (const auto& [name, tokens] :
       {std::pair("partial", &partial_tokens), std::pair("dropped", &dropped_tokens),
        std::pair("added", &added_tokens)}) {
    if (!tokens->empty()) vocabulary[name] = *tokens;
  }
  const Json json = {{"schema", "modicum.tune.merged/1"},
                     {"plan", Json::parse(plan.to_json())},
                     {"bytes", bytes},
                     {"tensors", tensors},
                     {"vocabulary", std::move(vocabulary)},
                     {"kinds", std::move(list)}};
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace modicum::tune
