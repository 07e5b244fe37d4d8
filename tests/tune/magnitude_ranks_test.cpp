// SPDX-License-Identifier: Apache-2.0
#include <modicum/tune/magnitude_ranks.hpp>

#include "grid.hpp"
#include "support/catch.hpp"

using namespace modicum;
using namespace modicum::tune;

namespace {

constexpr std::size_t kCount = 40'000;  // three tiles of arrays

/// Arrays in tiles of any size.
class TiledReader final : public TensorReader {
 public:
  TiledReader(std::span<const float> base, std::vector<std::span<const float>> models, std::size_t tile)
      : base_(base), models_(std::move(models)), tile_(tile) {}

  std::size_t models() const override { return models_.size(); }
  std::uint64_t elements() const override { return base_.size(); }
  std::size_t tiles() const override { return (base_.size() + tile_ - 1) / tile_; }
  Tile read(std::size_t tile, Buffer& buffer) const override {
    const std::size_t first = tile * tile_;
    buffer.models.clear();
    for (const auto model : models_) buffer.models.push_back(model.data() + first);
    return {.index = tile,
            .first = first,
            .count = std::min(tile_, base_.size() - first),
            .base = base_.data() + first,
            .models = buffer.models};
  }

 private:
  std::span<const float> base_;
  std::vector<std::span<const float>> models_;
  std::size_t tile_;
};

/// Which differences come before a cut, tile by tile.
std::vector<bool> chosen(const RankCut& cut, Order order, const TensorReader& tensor, std::size_t model) {
  std::vector<bool> before;
  TensorReader::Buffer buffer;
  for (std::size_t t = 0; t < tensor.tiles(); ++t) {
    const Tile tile = tensor.read(t, buffer);
    CutWalk walk(cut, order, tile);
    for (std::size_t i = 0; i < tile.count; ++i) {
      const std::uint32_t magnitude = magnitude_bits(tile.models[model][i] - tile.base[i]);
      before.push_back(walk.before(magnitude));
      if (walk.uniform() && magnitude == walk.bits()) CHECK(walk.ties_before() == before.back());
    }
  }
  return before;
}

std::vector<bool> chosen_by_sorting(const Floats& delta, std::uint64_t rank, Order order) {
  const std::vector<std::size_t> sorted = order == Order::ascending ? ascending(delta) : descending(delta);
  std::vector<bool> before(delta.size());
  for (std::size_t i = 0; i < rank; ++i) before[sorted[i]] = true;
  return before;
}

/// Gaps between magnitudes of neighbouring bits as well as many equal ones.
Floats rough(std::size_t count, std::uint32_t seed) {
  std::mt19937 random(seed);
  Floats values = grid(count, seed);
  for (float& value : values) {
    if (random() % 2 == 0) value = std::ldexp(value + 3.0f, static_cast<int>(random() % 40) - 20);
  }
  return values;
}

}  // namespace

TEST_CASE("a rank cut chooses what a stable sort by magnitude puts first") {
  const Floats base = grid(kCount, 1);
  const std::vector<Floats> models = {grid(kCount, 2), rough(kCount, 3)};
  std::vector<RankQuestion> questions;
  for (std::size_t model = 0; model < models.size(); ++model) {
    for (const Order order : {Order::ascending, Order::descending}) {
      for (const std::uint64_t rank :
           {std::size_t{0}, std::size_t{1}, std::size_t{1001}, kCount / 3, kCount / 2, kCount - 1, kCount}) {
        questions.push_back({.model = model, .rank = rank, .order = order});
      }
    }
  }
  for (const std::size_t tile : {std::size_t{16384}, std::size_t{1000}, kCount}) {
    const TiledReader reader(base, {models.begin(), models.end()}, tile);
    for (const std::size_t threads : {1u, 3u}) {
      ThreadPool pool(threads);
      const std::vector<RankCut> cuts = MagnitudeRanks(questions).find(reader, pool);
      REQUIRE(cuts.size() == questions.size());
      for (std::size_t q = 0; q < questions.size(); ++q) {
        const auto [model, rank, order] = questions[q];
        INFO("model " << model << ", rank " << rank << ", tile " << tile << ", threads " << threads);
        const bool same = chosen(cuts[q], order, reader, model) ==
                          chosen_by_sorting(minus(models[model], base), rank, order);
        CHECK(same);
      }
    }
  }
}

TEST_CASE("differences that are all equal are cut where they lie") {
  const Floats base(kCount, 1.0f), model(kCount, 0.25f);
  const ArrayReader reader(base, {model});
  ThreadPool pool(2);
  const std::uint64_t rank = 20'000;
  const RankCut cut = MagnitudeRanks({{.model = 0, .rank = rank}}).find(reader, pool).front();
  CHECK(cut.bits == magnitude_bits(0.75f));
  CHECK(cut.ties == rank);
  const std::vector<bool> before = chosen(cut, Order::descending, reader, 0);
  CHECK(static_cast<std::uint64_t>(std::count(before.begin(), before.end(), true)) == rank);
  CHECK(before[rank - 1]);
  CHECK_FALSE(before[rank]);
}

TEST_CASE("cuts over several tensors are those of one that holds them all") {
  const Floats base = grid(kCount, 4), model = rough(kCount, 5);
  const std::vector<RankQuestion> questions = {{.model = 0, .rank = 1},
                                               {.model = 0, .rank = 12'345},
                                               {.model = 0, .rank = 30'000, .order = Order::ascending}};
  ThreadPool pool(2);
  const std::vector<RankCut> whole = MagnitudeRanks(questions).find(ArrayReader(base, {model}), pool);
  MagnitudeRanks ranks(questions);
  for (int pass = 0; pass < 2; ++pass) {
    for (const auto& [first, count] :
         {std::pair<std::size_t, std::size_t>{0, 7}, {7, 20'000}, {20'007, 0}, {20'007, kCount - 20'007}}) {
      const std::span<const float> part = std::span(model).subspan(first, count);
      ranks.count(ArrayReader(std::span(base).subspan(first, count), {part}), pool);
    }
    if (pass == 0) ranks.narrow();
  }
  const std::vector<RankCut> parts = ranks.cuts();
  for (std::size_t q = 0; q < questions.size(); ++q) {
    CHECK(parts[q].bits == whole[q].bits);
    CHECK(parts[q].ties == whole[q].ties);
  }
}
