// SPDX-License-Identifier: Apache-2.0
// Paths of keys, queries, and the softmax that attention over them is.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <optional>
#include <vector>

#include <modicum/ops/attention.hpp>
#include <modicum/ops/quantize_kv.hpp>

#include "ops/random_matrix.hpp"
#include "support/catch.hpp"

using namespace modicum;
using ops::KeyRun;
using ops::KeyTile;
using ops::kKeyTile;

struct Shape {
  std::size_t heads = 4;
  std::size_t kv_heads = 2;
  std::size_t head_dim = 16;
  DType dtype = DType::f32;
  std::size_t window = 0;

  std::size_t width() const { return kv_heads * head_dim; }
};

/// Turns each head's halves by the angle of `position`, in f64.
inline void rotate(double* x, std::size_t head_dim, double position) {
  const std::size_t half = head_dim / 2;
  for (std::size_t i = 0; i < half; ++i) {
    const double angle =
        position * std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
    const double a = x[i], b = x[i + half];
    x[i] = a * std::cos(angle) - b * std::sin(angle);
    x[i + half] = b * std::cos(angle) + a * std::sin(angle);
  }
}

/// Keys and values of consecutive positions from `begin`, rotated from `origin`: two layers, of which the
/// second counts, each ending at the end of a page. With `bits`, they are integers.
class Segment {
 public:
  Segment(const Shape& shape, std::size_t begin, std::size_t count, std::size_t origin, std::uint32_t seed,
          int bits = 0)
      : shape_(shape),
        begin_(begin),
        count_(count),
        origin_(origin),
        k_(2 * count * shape.width() * (bits == 0 ? bits_of(shape.dtype) : static_cast<std::size_t>(bits)) /
           8),
        v_(k_.size()),
        k_scales_(2 * ((count + ops::kKeyGroup - 1) / ops::kKeyGroup) * 2 * shape.width()),
        v_scales_(2 * count * shape.kv_heads * 2),
        keys_(random_values(count * shape.width(), seed)),
        values_(random_values(count * shape.width(), seed + 1)) {
    for (std::size_t r = 0; r < count; ++r) {
      for (std::size_t h = 0; h < shape.kv_heads; ++h) {
        std::vector<double> turned(&keys_[r * shape.width() + h * shape.head_dim],
                                   &keys_[r * shape.width() + h * shape.head_dim] + shape.head_dim);
        rotate(turned.data(), shape.head_dim, static_cast<double>(begin + r) - static_cast<double>(origin));
        std::copy(turned.begin(), turned.end(), &keys_[r * shape.width() + h * shape.head_dim]);
      }
    }
    bits == 0 ? store() : store_codes(bits);
  }

  std::size_t begin() const { return begin_; }
  std::size_t end() const { return begin_ + count_; }

  /// Rows [first, first + count), as the tree would describe them.
  KeyRun run(std::size_t first, std::size_t count) const {
    return {.k = k_.data(),
            .v = v_.data(),
            .layer_stride = k_.size() / 2,
            .origin = origin_,
            .count = static_cast<std::uint32_t>(count),
            .first = static_cast<std::uint32_t>(first),
            .scales = scales_ ? &*scales_ : nullptr};
  }

  /// The stored key of `position`, turned on to the rotation from 0.
  std::vector<double> key(std::size_t position, std::size_t head) const {
    const float* row = &keys_[(position - begin_) * shape_.width() + head * shape_.head_dim];
    std::vector<double> key(row, row + shape_.head_dim);
    rotate(key.data(), shape_.head_dim, static_cast<double>(origin_));
    return key;
  }
  const float* value(std::size_t position, std::size_t head) const {
    return &values_[(position - begin_) * shape_.width() + head * shape_.head_dim];
  }

 private:
  void store() {
    dispatch(shape_.dtype, [&](auto t) {
      using T = decltype(t);
      for (std::size_t i = 0; i < values_.size(); ++i) {
        const T key = from_f32<T>(keys_[i]);
        const T value = from_f32<T>(values_[i]);
        std::memcpy(k_.data() + (values_.size() + i) * sizeof(T), &key, sizeof(T));
        std::memcpy(v_.data() + (values_.size() + i) * sizeof(T), &value, sizeof(T));
        values_[i] = to_f32(value);
        keys_[i] = to_f32(key);
      }
    });
  }

  void store_codes(int bits) {
    const ops::KvCodesShape shape{.rows = count_,
                                  .kv_heads = shape_.kv_heads,
                                  .head_dim = shape_.head_dim,
                                  .dtype = DType::f32,
                                  .bits = bits};
    const ops::KvCodes codes = ops::quantize_kv(shape, reinterpret_cast<const std::byte*>(keys_.data()),
                                                reinterpret_cast<const std::byte*>(values_.data()));
    std::copy(codes.k.begin(), codes.k.end(), k_.data() + k_.size() / 2);
    std::copy(codes.v.begin(), codes.v.end(), v_.data() + v_.size() / 2);
    std::copy(codes.k_scales.begin(), codes.k_scales.end(), k_scales_.data() + k_scales_.size() / 2);
    std::copy(codes.v_scales.begin(), codes.v_scales.end(), v_scales_.data() + v_scales_.size() / 2);
    scales_ = ops::KvScales{.bits = bits,
                            .k = k_scales_.data(),
                            .v = v_scales_.data(),
                            .k_stride = k_scales_.size() / 2,
                            .v_stride = v_scales_.size() / 2};
    ops::dequantize_kv(shape, codes, keys_.data(), values_.data());
  }

  Shape shape_;
  std::size_t begin_;
  std::size_t count_;
  std::size_t origin_;
  GuardedArray<std::byte> k_, v_;
  GuardedArray<f16> k_scales_, v_scales_;
  std::optional<ops::KvScales> scales_;
  std::vector<float> keys_, values_;  ///< as they are stored
};

using Path = std::vector<std::shared_ptr<const Segment>>;

/// The path's tiles; those that hold the same keys as a tile of `shared` are the same object.
struct Tiles {
  Tiles(const Path& path, const Tiles* shared = nullptr) {
    std::vector<KeyTile> all;
    for (const auto& segment : path) {
      for (std::size_t p = segment->begin(); p < segment->end();) {
        if (p % kKeyTile == 0) all.push_back({.begin = p, .count = 0, .runs = {}});
        const std::size_t end = std::min(segment->end(), (p / kKeyTile + 1) * kKeyTile);
        all.back().runs.push_back(segment->run(p - segment->begin(), end - p));
        all.back().count += static_cast<std::uint32_t>(end - p);
        p = end;
      }
    }
    for (std::size_t i = 0; i < all.size(); ++i) {
      const bool same = shared != nullptr && i < shared->list.size() && equal(*shared->list[i], all[i]);
      owned.push_back(same ? nullptr : std::make_unique<KeyTile>(all[i]));
      list.push_back(same ? shared->list[i] : owned.back().get());
    }
  }
  /// Runs of at most 9 keys.
  void split_runs() {
    std::mt19937 random(3);
    for (auto& tile : owned) {
      const std::vector<KeyRun> whole = std::move(tile->runs);
      tile->runs.clear();
      for (const KeyRun& run : whole) {
        for (std::uint32_t at = 0; at < run.count;) {
          const std::uint32_t count = std::min<std::uint32_t>(1 + random() % 9, run.count - at);
          KeyRun piece = run;
          piece.first += at;
          piece.count = count;
          tile->runs.push_back(piece);
          at += count;
        }
      }
    }
  }
  static bool equal(const KeyTile& a, const KeyTile& b) {
    return a.count == b.count && std::equal(a.runs.begin(), a.runs.end(), b.runs.begin(), b.runs.end(),
                                            [](const KeyRun& x, const KeyRun& y) {
                                              return x.k == y.k && x.first == y.first && x.count == y.count;
                                            });
  }
  std::vector<std::unique_ptr<KeyTile>> owned;
  std::vector<const KeyTile*> list;
};

struct Group {
  Path path;
  std::size_t position = 0;
  std::size_t count = 0;
};

/// Queries that the model would compute, and their rotations for each origin.
struct Queries {
  Queries(const Shape& shape, const std::vector<Group>& groups, std::uint32_t seed) {
    std::size_t rows = 0;
    for (const Group& group : groups) rows += group.count;
    const auto q = random_values(rows * shape.heads * shape.head_dim, seed, 2.0f);
    plain.assign(q.begin(), q.end());
    origins = {0};
    for (const Group& group : groups) {
      for (const auto& segment : group.path) origins.push_back(segment->run(0, 0).origin);
    }
    std::sort(origins.begin(), origins.end());
    origins.erase(std::unique(origins.begin(), origins.end()), origins.end());
    for (const std::size_t origin : origins) {
      std::vector<double> turned = plain;
      std::size_t row = 0;
      for (const Group& group : groups) {
        for (std::size_t i = 0; i < group.count; ++i, ++row) {
          for (std::size_t h = 0; h < shape.heads; ++h) {
            rotate(&turned[(row * shape.heads + h) * shape.head_dim], shape.head_dim,
                   static_cast<double>(group.position + i) - static_cast<double>(origin));
          }
        }
      }
      rotated.emplace_back(turned.begin(), turned.end());
      if (origin == 0) upright = turned;
    }
  }
  std::vector<ops::RotatedQueries> views() const {
    std::vector<ops::RotatedQueries> all;
    for (std::size_t i = 0; i < origins.size(); ++i) all.push_back({origins[i], rotated[i].data()});
    return all;
  }
  std::vector<std::size_t> origins;
  std::vector<std::vector<float>> rotated;
  std::vector<double> plain, upright;
};

/// Calls body(shape, rotated queries, groups) with what the operations on attention take.
template <class Body>
void with_views(const Shape& shape, const Queries& queries, const std::vector<Group>& groups,
                const Body& body) {
  std::vector<std::unique_ptr<Tiles>> tiles;
  std::vector<ops::QueryGroup> views;
  std::size_t row = 0;
  for (const Group& group : groups) {
    tiles.push_back(std::make_unique<Tiles>(group.path, tiles.empty() ? nullptr : tiles.front().get()));
    views.push_back(
        {.row = row, .count = group.count, .position = group.position, .tiles = tiles.back()->list});
    row += group.count;
  }
  const ops::AttentionShape a{.heads = shape.heads,
                              .kv_heads = shape.kv_heads,
                              .head_dim = shape.head_dim,
                              .kv_dtype = shape.dtype,
                              .layer = 1,
                              .window = shape.window,
                              .scale = 0.3f};
  body(a, queries.views(), views);
}

inline std::vector<float> run(ThreadPool& pool, const Shape& shape, const Queries& queries,
                              const std::vector<Group>& groups) {
  GuardedArray<float> out(queries.plain.size());
  with_views(shape, queries, groups, [&](const auto& a, const auto& q, const auto& views) {
    ops::attention(pool, a, q, views, out.data());
  });
  REQUIRE(out.front_is_intact());
  return {out.begin(), out.end()};
}

/// The softmax weights of head h of query i of a group, whose row is `row`, by position, in f64.
inline std::vector<double> weights(const Shape& shape, const Queries& queries, const Group& group,
                                   std::size_t i, std::size_t row, std::size_t h) {
  const std::size_t position = group.position + i;
  const std::size_t first =
      shape.window != 0 && position + 1 > shape.window ? position + 1 - shape.window : 0;
  const std::size_t kv = h / (shape.heads / shape.kv_heads);
  const double* const q = &queries.upright[(row * shape.heads + h) * shape.head_dim];
  std::vector<double> all(position + 1);
  double sum = 0;
  for (const auto& segment : group.path) {
    for (std::size_t p = std::max(first, segment->begin()); p < std::min(segment->end(), position + 1); ++p) {
      const auto key = segment->key(p, kv);
      all[p] = std::exp(static_cast<double>(0.3f) * std::inner_product(key.begin(), key.end(), q, 0.0));
      sum += all[p];
    }
  }
  for (double& weight : all) weight /= sum;
  return all;
}

/// The softmax as it is written, in f64.
inline std::vector<double> reference(const Shape& shape, const Queries& queries,
                                     const std::vector<Group>& groups) {
  std::vector<double> out(queries.plain.size());
  std::size_t row = 0;
  for (const Group& group : groups) {
    for (std::size_t i = 0; i < group.count; ++i, ++row) {
      for (std::size_t h = 0; h < shape.heads; ++h) {
        double* const o = &out[(row * shape.heads + h) * shape.head_dim];
        const auto weight = weights(shape, queries, group, i, row, h);
        for (const auto& segment : group.path) {
          for (std::size_t p = segment->begin(); p < std::min(segment->end(), weight.size()); ++p) {
            const float* const value = segment->value(p, h / (shape.heads / shape.kv_heads));
            for (std::size_t d = 0; d < shape.head_dim; ++d) o[d] += weight[p] * value[d];
          }
        }
      }
    }
  }
  return out;
}

inline void require_close(const std::vector<float>& got, const std::vector<double>& want, double bound) {
  REQUIRE(got.size() == want.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (!(std::fabs(got[i] - want[i]) <= bound))
      FAIL("element " << i << ": " << got[i] << " but " << want[i]);
  }
}

inline std::shared_ptr<const Segment> segment(const Shape& shape, std::size_t begin, std::size_t count,
                                              std::size_t origin = 0, std::uint32_t seed = 1, int bits = 0) {
  return std::make_shared<Segment>(shape, begin, count, origin, seed + static_cast<std::uint32_t>(begin) * 7,
                                   bits);
}

// Values are below 1; scores are some units, so f32 leaves their exponentials a relative error near 1e-6.
inline constexpr double kBound = 3e-6;
/// Where lanes are rows, queries and weights are rounded to bf16: scores of about 10 move by some
/// thousandths.
inline constexpr double kLaneBound = 1.2e-2;

inline bool in_lanes(ops::Isa isa, const Shape& shape) {
  return isa >= ops::Isa::avx512bf16 && shape.dtype == DType::bf16 && shape.head_dim % 32 == 0;
}

inline double bound(ops::Isa isa, const Shape& shape, double otherwise = kBound) {
  return in_lanes(isa, shape) ? kLaneBound : otherwise;
}

/// Shapes of either kind of kernel.
inline const Shape kShapes[] = {{.heads = 6, .kv_heads = 2, .head_dim = 20, .dtype = DType::bf16},
                                {.heads = 14, .kv_heads = 2, .head_dim = 64, .dtype = DType::bf16},
                                {.heads = 3, .kv_heads = 1, .head_dim = 96, .dtype = DType::bf16}};
