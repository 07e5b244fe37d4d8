// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <vector>

#include <modicum/base/thread_pool.hpp>

namespace modicum::retrofit {

/// Vectors are worked on in blocks of this many numbers: sums of blocks are added in order, so that the
/// result is the same for any number of threads.
inline constexpr std::size_t kVectorBlock = 16384;

/// Calls body(begin, end) for the blocks of [0, count).
template <std::invocable<std::size_t, std::size_t> Body>
void in_blocks(ThreadPool& pool, std::size_t count, const Body& body) {
  pool.run((count + kVectorBlock - 1) / kVectorBlock,
           [&](std::size_t i) { body(i * kVectorBlock, std::min(count, (i + 1) * kVectorBlock)); });
}

/// Σ a b in f64.
inline double dot(ThreadPool& pool, const std::vector<float>& a, const std::vector<float>& b) {
  std::vector<double> sums((a.size() + kVectorBlock - 1) / kVectorBlock);
  in_blocks(pool, a.size(), [&](std::size_t begin, std::size_t end) {
    double sum = 0;
    for (std::size_t i = begin; i < end; ++i) sum += static_cast<double>(a[i]) * b[i];
    sums[begin / kVectorBlock] = sum;
  });
  double sum = 0;
  for (const double part : sums) sum += part;
  return sum;
}

/// y = a x + b y.
inline void combine(ThreadPool& pool, double a, const std::vector<float>& x, double b,
                    std::vector<float>& y) {
  const auto fa = static_cast<float>(a);
  const auto fb = static_cast<float>(b);
  in_blocks(pool, y.size(), [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) y[i] = fa * x[i] + fb * y[i];
  });
}

/// Preconditioned conjugate gradients for H x = r from x = 0, H symmetric and positive definite (Hestenes and
/// Stiefel 1952). `apply(p, out)`: out = H p; `precondition(r, out)`: out ≈ H⁻¹ r, positive definite;
/// `go_on(x)` after every step: whether to take another. Returns the steps that were taken; ends early where
/// nothing is left to gain. Vectors are f32, their products summed in f64.
template <class Apply, class Precondition, std::predicate<const std::vector<float>&> GoOn>
std::size_t conjugate_gradient(ThreadPool& pool, std::vector<float> r, std::size_t iterations,
                               const Apply& apply, const Precondition& precondition, const GoOn& go_on) {
  std::vector<float> x(r.size());
  std::vector<float> z(r.size());
  std::vector<float> hp(r.size());
  precondition(r, z);
  std::vector<float> p = z;
  double energy = dot(pool, r, z);
  for (std::size_t step = 0; step < iterations; ++step) {
    if (!(energy > 0)) return step;
    apply(p, hp);
    const double curvature = dot(pool, p, hp);
    if (!(curvature > 0)) return step;
    const double length = energy / curvature;
    combine(pool, length, p, 1, x);
    combine(pool, -length, hp, 1, r);
    if (!go_on(x)) return step + 1;
    precondition(r, z);
    const double next = dot(pool, r, z);
    combine(pool, 1, z, next / energy, p);
    energy = next;
  }
  return iterations;
}

}  // namespace modicum::retrofit
