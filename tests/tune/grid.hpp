// SPDX-License-Identifier: Apache-2.0
// Arrays to merge, and the plain loops that say what comes out.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <modicum/tune/merge.hpp>

using Floats = std::vector<float>;

/// Multiples of 1/32 in ±2: many magnitudes are equal, and sums, differences and products with dyadic weights
/// are exact, so that references need no tolerance.
inline Floats grid(std::size_t count, std::uint32_t seed) {
  std::mt19937 random(seed);
  Floats values(count);
  for (float& value : values) value = (static_cast<float>(random() % 129) - 64.0f) / 32.0f;
  return values;
}

inline Floats minus(const Floats& a, const Floats& b) {
  Floats out(a.size());
  for (std::size_t i = 0; i < a.size(); ++i) out[i] = a[i] - b[i];
  return out;
}

inline Floats plus(const Floats& a, const Floats& b) {
  Floats out(a.size());
  for (std::size_t i = 0; i < a.size(); ++i) out[i] = a[i] + b[i];
  return out;
}

/// Numbers of the elements from the smallest magnitude to the largest, equal ones as they lie.
inline std::vector<std::size_t> ascending(const Floats& x) {
  std::vector<std::size_t> order(x.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return std::abs(x[a]) < std::abs(x[b]); });
  return order;
}

/// From the largest to the smallest, equal ones as they lie.
inline std::vector<std::size_t> descending(const Floats& x) {
  std::vector<std::size_t> order(x.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return std::abs(x[a]) > std::abs(x[b]); });
  return order;
}

/// Only the `count` largest.
inline Floats trimmed(const Floats& delta, std::size_t count) {
  const std::vector<std::size_t> order = descending(delta);
  Floats out(delta.size());
  for (std::size_t i = 0; i < count; ++i) out[order[i]] = delta[order[i]];
  return out;
}

/// The consensus of TIES over differences. `tie`: the sign of a sum of zero.
inline Floats elected(const std::vector<Floats>& deltas, const Floats& weights,
                      modicum::tune::Definition definition, bool normalize, float tie = 1) {
  const bool mergekit = definition == modicum::tune::Definition::mergekit;
  Floats out(deltas[0].size());
  for (std::size_t i = 0; i < out.size(); ++i) {
    float sum = 0;
    for (std::size_t m = 0; m < deltas.size(); ++m) sum += deltas[m][i] * (mergekit ? weights[m] : 1.0f);
    const float sign = sum > 0 ? 1.0f : sum < 0 ? -1.0f : tie;
    float agreed = 0, divisor = 0;
    for (std::size_t m = 0; m < deltas.size(); ++m) {
      const float vote = deltas[m][i] * (mergekit ? weights[m] : 1.0f);
      if (vote * sign <= 0) continue;
      agreed += deltas[m][i] * weights[m];
      divisor += mergekit ? weights[m] : 1.0f;
    }
    out[i] = normalize && divisor != 0 ? agreed / divisor : agreed;
  }
  return out;
}

inline Floats weighted_sum(const std::vector<Floats>& x, const Floats& weights) {
  Floats out(x[0].size());
  for (std::size_t m = 0; m < x.size(); ++m) {
    for (std::size_t i = 0; i < out.size(); ++i) out[i] += x[m][i] * weights[m];
  }
  return out;
}

/// What `plan` makes of arrays.
inline Floats merged(const modicum::tune::MergePlan& plan, const Floats& base,
                     const std::vector<Floats>& models, std::size_t threads = 1,
                     const std::string& name = "x") {
  modicum::ThreadPool pool(threads);
  Floats out(models[0].size(), -77.0f);
  modicum::tune::merge_arrays(plan, name, base, {models.begin(), models.end()}, out, pool);
  return out;
}
