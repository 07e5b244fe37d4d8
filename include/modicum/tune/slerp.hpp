// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include <modicum/base/lane_sum.hpp>
#include <modicum/tune/merge_method.hpp>

namespace modicum::tune {

/// Spherical interpolation of a tensor as one vector, from the base (t = 0) to the model (t = 1):
/// sin((1−t)θ)/sin θ · a + sin(tθ)/sin θ · b with θ the angle between them, and a straight line where the
/// cosine of the angle is beyond ±0.9995. As mergekit defines it: the coefficients are those of unit vectors
/// and are applied to the vectors as they are.
class Slerp {
 public:
  static constexpr Outcome kOutcome = Outcome::value;

  explicit Slerp(double t) : t_(t) {}

  void prepare(const TensorReader& tensor, ThreadPool& pool) {
    struct Sums {
      double aa = 0, bb = 0, ab = 0;
    };
    std::vector<Sums> parts(tensor.tiles());
    for_each_tile(tensor, pool, pool.size(), [&](std::size_t, const Tile& tile) {
      Lanes aa{}, bb{}, ab{};
      for_each_lane(tile.count, [&](std::size_t i, std::size_t lane) {
        const double a = tile.base[i], b = tile.models[0][i];
        aa[lane] += a * a;
        bb[lane] += b * b;
        ab[lane] += a * b;
      });
      parts[tile.index] = {sum(aa), sum(bb), sum(ab)};
    });
    Sums all;
    for (const Sums& part : parts) {
      all.aa += part.aa;
      all.bb += part.bb;
      all.ab += part.ab;
    }
    const auto norm = [](double squares) { return std::sqrt(squares) > 1e-8 ? std::sqrt(squares) : 1.0; };
    const double cosine = std::clamp(all.ab / (norm(all.aa) * norm(all.bb)), -1.0, 1.0);
    from_ = static_cast<float>(1 - t_);
    to_ = static_cast<float>(t_);
    if (std::abs(cosine) > 0.9995) return;
    const double angle = std::acos(cosine);
    from_ = static_cast<float>(std::sin((1 - t_) * angle) / std::sin(angle));
    to_ = static_cast<float>(std::sin(t_ * angle) / std::sin(angle));
  }

  void merge(const Tile& tile, std::vector<float>&, float* out) const {
    for (std::size_t i = 0; i < tile.count; ++i) out[i] = from_ * tile.base[i] + to_ * tile.models[0][i];
  }

 private:
  double t_;
  float from_ = 1, to_ = 0;
};
static_assert(MergeMethod<Slerp>);

}  // namespace modicum::tune
