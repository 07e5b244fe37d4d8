// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstring>
#include <random>
#include <vector>

#include <modicum/ops/isa.hpp>
#include <modicum/tensor/matrix.hpp>

#include "support/guarded_array.hpp"

/// Calls `body(isa)` with each instruction set that this processor has, in force; the widest stays.
template <class Body>
void for_each_isa(const Body& body) {
  for (const modicum::ops::Isa isa : modicum::ops::supported_isas()) {
    modicum::ops::force_isa(isa);
    body(isa);
  }
}

inline std::vector<float> random_values(std::size_t count, std::uint32_t seed, float scale = 1.0f) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(-scale, scale);
  std::vector<float> values(count);
  for (float& value : values) value = uniform(random);
  return values;
}

/// A weight of `dtype` that ends at the end of a page, and the same numbers as f32.
class RandomWeight {
 public:
  RandomWeight(modicum::DType dtype, std::size_t rows, std::size_t cols, std::uint32_t seed)
      : dtype_(dtype),
        rows_(rows),
        cols_(cols),
        memory_(rows * cols * modicum::size_of(dtype)),
        values_(random_values(rows * cols, seed)) {
    modicum::dispatch(dtype, [&](auto t) {
      using T = decltype(t);
      for (std::size_t i = 0; i < values_.size(); ++i) {
        const T stored = modicum::from_f32<T>(values_[i]);
        std::memcpy(memory_.data() + i * sizeof(T), &stored, sizeof(T));
        values_[i] = modicum::to_f32(stored);
      }
    });
  }

  modicum::WeightView view() const { return {memory_.data(), dtype_, rows_, cols_}; }
  float at(std::size_t row, std::size_t col) const { return values_[row * cols_ + col]; }

 private:
  modicum::DType dtype_;
  std::size_t rows_;
  std::size_t cols_;
  GuardedArray<std::byte> memory_;
  std::vector<float> values_;
};
