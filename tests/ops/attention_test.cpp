// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <vector>

#include <modicum/ops/attention.hpp>

#include "ops/random_matrix.hpp"
#include "support/catch.hpp"

using namespace modicum;
using ops::KeyRun;
using ops::KeyTile;
using ops::kKeyTile;

namespace {

struct Shape {
  std::size_t heads = 4;
  std::size_t kv_heads = 2;
  std::size_t head_dim = 16;
  DType dtype = DType::f32;
  std::size_t window = 0;

  std::size_t width() const { return kv_heads * head_dim; }
};

/// Turns each head's halves by the angle of `position`, in f64.
void rotate(double* x, std::size_t head_dim, double position) {
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
/// second counts, each ending at the end of a page.
class Segment {
 public:
  Segment(const Shape& shape, std::size_t begin, std::size_t count, std::size_t origin, std::uint32_t seed)
      : shape_(shape),
        begin_(begin),
        count_(count),
        origin_(origin),
        k_(2 * count * shape.width() * size_of(shape.dtype)),
        v_(k_.size()),
        keys_(random_values(count * shape.width(), seed)),
        values_(random_values(count * shape.width(), seed + 1)) {
    std::vector<double> turned(keys_.begin(), keys_.end());
    for (std::size_t r = 0; r < count; ++r) {
      for (std::size_t h = 0; h < shape.kv_heads; ++h) {
        rotate(&turned[r * shape.width() + h * shape.head_dim], shape.head_dim,
               static_cast<double>(begin + r) - static_cast<double>(origin));
      }
    }
    dispatch(shape.dtype, [&](auto t) {
      using T = decltype(t);
      for (std::size_t i = 0; i < values_.size(); ++i) {
        const T key = from_f32<T>(static_cast<float>(turned[i]));
        const T value = from_f32<T>(values_[i]);
        std::memcpy(k_.data() + (values_.size() + i) * sizeof(T), &key, sizeof(T));
        std::memcpy(v_.data() + (values_.size() + i) * sizeof(T), &value, sizeof(T));
        values_[i] = to_f32(value);
        turned[i] = to_f32(key);
      }
    });
    stored_ = std::move(turned);
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
            .first = static_cast<std::uint32_t>(first)};
  }

  /// The stored key of `position`, turned on to the rotation from 0.
  std::vector<double> key(std::size_t position, std::size_t head) const {
    const double* row = &stored_[(position - begin_) * shape_.width() + head * shape_.head_dim];
    std::vector<double> key(row, row + shape_.head_dim);
    rotate(key.data(), shape_.head_dim, static_cast<double>(origin_));
    return key;
  }
  const float* value(std::size_t position, std::size_t head) const {
    return &values_[(position - begin_) * shape_.width() + head * shape_.head_dim];
  }

 private:
  Shape shape_;
  std::size_t begin_;
  std::size_t count_;
  std::size_t origin_;
  GuardedArray<std::byte> k_, v_;
  std::vector<float> keys_, values_;
  std::vector<double> stored_;
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

std::vector<float> run(ThreadPool& pool, const Shape& shape, const Queries& queries,
                       const std::vector<Group>& groups) {
  std::vector<std::unique_ptr<Tiles>> tiles;
  std::vector<ops::QueryGroup> views;
  std::size_t row = 0;
  for (const Group& group : groups) {
    tiles.push_back(std::make_unique<Tiles>(group.path, tiles.empty() ? nullptr : tiles.front().get()));
    views.push_back(
        {.row = row, .count = group.count, .position = group.position, .tiles = tiles.back()->list});
    row += group.count;
  }
  GuardedArray<float> out(row * shape.heads * shape.head_dim);
  const ops::AttentionShape a{.heads = shape.heads,
                              .kv_heads = shape.kv_heads,
                              .head_dim = shape.head_dim,
                              .kv_dtype = shape.dtype,
                              .layer = 1,
                              .window = shape.window,
                              .scale = 0.3f};
  const auto q = queries.views();
  ops::attention(pool, a, q, views, out.data());
  REQUIRE(out.front_is_intact());
  return {out.begin(), out.end()};
}

/// The softmax as it is written, in f64.
std::vector<double> reference(const Shape& shape, const Queries& queries, const std::vector<Group>& groups) {
  std::vector<double> out(queries.plain.size());
  std::size_t row = 0;
  for (const Group& group : groups) {
    for (std::size_t i = 0; i < group.count; ++i, ++row) {
      const std::size_t position = group.position + i;
      const std::size_t first =
          shape.window != 0 && position + 1 > shape.window ? position + 1 - shape.window : 0;
      for (std::size_t h = 0; h < shape.heads; ++h) {
        const std::size_t kv = h / (shape.heads / shape.kv_heads);
        const std::size_t at = (row * shape.heads + h) * shape.head_dim;
        double sum = 0;
        std::vector<double> o(shape.head_dim);
        for (const auto& segment : group.path) {
          for (std::size_t p = std::max(first, segment->begin()); p < std::min(segment->end(), position + 1);
               ++p) {
            const auto key = segment->key(p, kv);
            const double weight =
                std::exp(static_cast<double>(0.3f) *
                         std::inner_product(key.begin(), key.end(), &queries.upright[at], 0.0));
            sum += weight;
            for (std::size_t d = 0; d < shape.head_dim; ++d) o[d] += weight * segment->value(p, kv)[d];
          }
        }
        for (std::size_t d = 0; d < shape.head_dim; ++d) out[at + d] = o[d] / sum;
      }
    }
  }
  return out;
}

void require_close(const std::vector<float>& got, const std::vector<double>& want, double bound) {
  REQUIRE(got.size() == want.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (!(std::fabs(got[i] - want[i]) <= bound))
      FAIL("element " << i << ": " << got[i] << " but " << want[i]);
  }
}

std::shared_ptr<const Segment> segment(const Shape& shape, std::size_t begin, std::size_t count,
                                       std::size_t origin = 0, std::uint32_t seed = 1) {
  return std::make_shared<Segment>(shape, begin, count, origin, seed + static_cast<std::uint32_t>(begin) * 7);
}

// Values are below 1; scores are some units, so f32 leaves their exponentials a relative error near 1e-6.
constexpr double kBound = 3e-6;
/// Where lanes are rows, queries and weights are rounded to bf16: scores of about 10 move by some
/// thousandths.
constexpr double kLaneBound = 1.2e-2;

bool in_lanes(ops::Isa isa, const Shape& shape) {
  return isa >= ops::Isa::avx512bf16 && shape.dtype == DType::bf16 && shape.head_dim % 32 == 0;
}

double bound(ops::Isa isa, const Shape& shape, double otherwise = kBound) {
  return in_lanes(isa, shape) ? kLaneBound : otherwise;
}

/// Shapes of either kind of kernel.
const Shape kShapes[] = {{.heads = 6, .kv_heads = 2, .head_dim = 20, .dtype = DType::bf16},
                         {.heads = 14, .kv_heads = 2, .head_dim = 64, .dtype = DType::bf16},
                         {.heads = 3, .kv_heads = 1, .head_dim = 96, .dtype = DType::bf16}};

}  // namespace

TEST_CASE("attention is the softmax of its formula for grouped heads, head sizes, dtypes and windows") {
  ThreadPool pool(2);
  for (const std::size_t group : {1, 2, 3, 7, 8}) {
    for (const std::size_t head_dim : {8, 20, 32, 64, 80, 96, 128, 256}) {
      const std::size_t variant = group + head_dim;
      const Shape shape{.heads = 2 * group,
                        .kv_heads = 2,
                        .head_dim = head_dim,
                        .dtype = variant % 3 == 0   ? DType::bf16
                                 : variant % 3 == 1 ? DType::f32
                                                    : DType::f16,
                        .window = variant % 2 == 0 ? std::size_t{0} : 37 + head_dim % 50};
      const std::vector<Group> groups{{{segment(shape, 0, 100), segment(shape, 100, 50)}, 100, 50}};
      const Queries queries(shape, groups, 5);
      const auto want = reference(shape, queries, groups);
      for_each_isa([&](ops::Isa isa) {
        INFO(ops::name_of(isa) << " group " << group << " head_dim " << head_dim << " window "
                               << shape.window);
        require_close(run(pool, shape, queries, groups), want,
                      bound(isa, shape, kBound * static_cast<double>(head_dim + 64) / 64));
      });
    }
  }
}

TEST_CASE("windows of every size around a tile see exactly their keys") {
  ThreadPool pool(1);
  for (const std::size_t window : {1, 2, 63, 64, 65, 128, 199, 200, 201}) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      const Shape shape{.heads = 2,
                        .kv_heads = 1,
                        .head_dim = dtype == DType::f32 ? std::size_t{8} : std::size_t{32},
                        .dtype = dtype,
                        .window = window};
      const std::vector<Group> groups{{{segment(shape, 0, 200)}, 0, 200}};
      const Queries queries(shape, groups, 6);
      const auto want = reference(shape, queries, groups);
      for_each_isa([&](ops::Isa isa) {
        INFO(ops::name_of(isa) << " " << name_of(dtype) << " window " << window);
        require_close(run(pool, shape, queries, groups), want, bound(isa, shape));
      });
    }
  }
}

TEST_CASE(
    "a query's result is the same for any split of its keys and queries, and for any number of threads") {
  ThreadPool one(1), three(3);
  for (const Shape& shape : kShapes) {
    const auto whole = segment(shape, 0, 170);
    const std::vector<Group> groups{{{whole}, 0, 170}};
    const Queries queries(shape, groups, 8);
    const std::size_t width = shape.heads * shape.head_dim;
    for_each_isa([&](ops::Isa isa) {
      INFO(ops::name_of(isa) << " head_dim " << shape.head_dim);
      const auto all = run(one, shape, queries, groups);
      REQUIRE(all == run(three, shape, queries, groups));
      for (const std::size_t first : {0, 1, 31, 32, 33, 63, 64, 65, 127, 128, 169}) {
        std::vector<Group> part{{{whole}, first, 170 - first}};
        Queries fewer(shape, part, 8);
        fewer.rotated[0].assign(queries.rotated[0].begin() + static_cast<std::ptrdiff_t>(first * width),
                                queries.rotated[0].end());
        const auto rest = run(one, shape, fewer, part);
        REQUIRE(
            std::equal(rest.begin(), rest.end(), all.begin() + static_cast<std::ptrdiff_t>(first * width)));
      }
    });
  }
}

TEST_CASE("thousands of keys, shared among threads or not, give one result") {
  ThreadPool one(1), four(4);
  for (const std::size_t window : {0, 2100}) {
    const Shape shape{.heads = 2, .kv_heads = 1, .head_dim = 32, .dtype = DType::bf16, .window = window};
    const auto trunk = segment(shape, 0, 4200);
    const std::vector<Group> groups{{{trunk, segment(shape, 4200, 3, 0, 5)}, 4200, 3},
                                    {{trunk, segment(shape, 4200, 1, 0, 6)}, 4200, 1},
                                    {{trunk}, 2040, 12}};
    const Queries queries(shape, groups, 14);
    const auto want = reference(shape, queries, groups);
    for_each_isa([&](ops::Isa isa) {
      INFO(ops::name_of(isa) << " window " << window);
      const auto alone = run(one, shape, queries, groups);
      REQUIRE(alone == run(four, shape, queries, groups));
      require_close(alone, want, bound(isa, shape, 1e-5));
    });
  }
}

TEST_CASE("keys in many short runs give what one run gives, bit for bit") {
  ThreadPool pool(2);
  const DType dtype = GENERATE(DType::f16, DType::bf16);
  const Shape shape{.heads = 4, .kv_heads = 2, .head_dim = 64, .dtype = dtype};
  const auto whole = segment(shape, 0, 150);
  const std::vector<Group> groups{{{whole}, 149, 1}};
  const Queries queries(shape, groups, 9);
  Tiles in_one(groups[0].path);
  Tiles in_many(groups[0].path);
  std::mt19937 random(3);
  for (auto& tile : in_many.owned) {
    const KeyRun run = tile->runs[0];
    tile->runs.clear();
    for (std::uint32_t at = 0; at < run.count;) {
      const std::uint32_t count = std::min<std::uint32_t>(1 + random() % 9, run.count - at);
      KeyRun piece = run;
      piece.first += at;
      piece.count = count;
      tile->runs.push_back(piece);
      at += count;
    }
  }
  const ops::AttentionShape a{
      .heads = 4, .kv_heads = 2, .head_dim = 64, .kv_dtype = dtype, .layer = 1, .scale = 0.3f};
  const auto q = queries.views();
  for_each_isa([&](ops::Isa) {
    std::vector<std::vector<float>> results;
    for (const Tiles* tiles : {&in_one, &in_many}) {
      const ops::QueryGroup group[] = {{.row = 0, .count = 1, .position = 149, .tiles = tiles->list}};
      results.emplace_back(4 * 64);
      ops::attention(pool, a, q, group, results.back().data());
    }
    REQUIRE(results[0] == results[1]);
  });
}

TEST_CASE("branches that share a trunk, and others beside them, each get what they would get alone") {
  ThreadPool pool(2);
  for (const std::size_t window : {0, 50}) {
    const std::size_t head_dim = GENERATE(16, 64);
    const Shape shape{
        .heads = 8, .kv_heads = 2, .head_dim = head_dim, .dtype = DType::bf16, .window = window};
    const auto trunk = segment(shape, 0, 140);
    const std::vector<Group> groups{{{trunk, segment(shape, 140, 5, 0, 10)}, 140, 5},
                                    {{trunk, segment(shape, 140, 1, 0, 20)}, 140, 1},
                                    {{segment(shape, 0, 70, 0, 30)}, 0, 70},
                                    {{trunk, segment(shape, 140, 60, 0, 40)}, 180, 20},
                                    {{trunk}, 139, 1}};
    const Queries queries(shape, groups, 11);
    const auto want = reference(shape, queries, groups);
    const std::size_t width = shape.heads * shape.head_dim;
    for_each_isa([&](ops::Isa isa) {
      INFO(ops::name_of(isa) << " window " << window);
      const auto together = run(pool, shape, queries, groups);
      require_close(together, want, bound(isa, shape));
      std::size_t row = 0;
      for (const Group& group : groups) {
        Queries own(shape, {group}, 11);
        const auto begin = static_cast<std::ptrdiff_t>(row * width);
        own.rotated[0].assign(
            queries.rotated[0].begin() + begin,
            queries.rotated[0].begin() + begin + static_cast<std::ptrdiff_t>(group.count * width));
        const auto alone = run(pool, shape, own, {group});
        REQUIRE(std::equal(alone.begin(), alone.end(), together.begin() + begin));
        row += group.count;
      }
    });
  }
}

TEST_CASE(
    "keys that count their rotation from their own first token serve at any offset, within f32 rounding") {
  ThreadPool pool(2);
  for (const std::size_t offset : {1, 15, 64, 100, 130}) {
    const DType dtype = GENERATE(DType::f32, DType::bf16);
    const Shape shape{.heads = 4, .kv_heads = 1, .head_dim = 64, .dtype = dtype};
    const std::vector<Group> groups{
        {{segment(shape, 0, offset), segment(shape, offset, 90, offset), segment(shape, offset + 90, 33)},
         offset + 90,
         33}};
    const Queries queries(shape, groups, 12);
    const auto want = reference(shape, queries, groups);
    for_each_isa([&](ops::Isa isa) {
      INFO(ops::name_of(isa) << " offset " << offset);
      require_close(run(pool, shape, queries, groups), want, bound(isa, shape, 2e-5));
    });
  }
}

TEST_CASE("scores of hundreds do not overflow") {
  ThreadPool pool(1);
  const Shape shape{.heads = 1, .kv_heads = 1, .head_dim = 8};
  const std::vector<Group> groups{{{segment(shape, 0, 100)}, 0, 100}};
  Queries queries(shape, groups, 13);
  for (float& q : queries.rotated[0]) q *= 400.0f;
  for_each_isa([&](ops::Isa) {
    for (const float value : run(pool, shape, queries, groups)) REQUIRE(std::fabs(value) <= 1.0f);
  });
}
