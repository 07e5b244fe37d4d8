// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include <modicum/base/error.hpp>
#include <modicum/retrofit/channels.hpp>

#include "support/catch.hpp"

using namespace modicum::retrofit;
using modicum::Moments;
using modicum::FormatError;
using modicum::InvalidArgument;
namespace linalg = modicum::linalg;
using Eigen::Index;
using linalg::Matrix;
using Channels = std::vector<std::size_t>;

namespace {

constexpr ChannelChoice kChoices[] = {ChannelChoice::second_order, ChannelChoice::wanda,
                                      ChannelChoice::magnitude};

Matrix normal(Index rows, Index cols, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> distribution;
  return Matrix::NullaryExpr(rows, cols, [&] { return distribution(random); });
}

/// Of rows x with the outputs W x as targets.
Moments moments_from(const Matrix& x, const Matrix& w) {
  const Matrix t = x * w.transpose();
  return {x.transpose() * x, t.transpose() * x, t.colwise().squaredNorm().transpose()};
}

/// What is lost with the best refit of the channels that stay.
double loss(const Moments& moments, const Matrix& w, const Channels& kept) {
  const Moments of = moments_of(moments, kept);
  return relative_error(ridge(of, w(Eigen::all, kept), 1e-9), of);
}

}  // namespace

TEST_CASE("Channels that say what others say go first, whatever their weights") {
  const Index n = 24;
  Matrix x = normal(200, n, 1);
  x.col(5) = x.col(2);
  x.col(11) = 0.5 * x.col(3) - 2 * x.col(4);
  Matrix w = normal(10, n, 2);
  for (const Index c : {2, 5, 11}) w.col(c) *= 5;
  const Moments moments = moments_from(x, w);
  const Channels kept = choose_channels(moments, w, n - 2, ChannelChoice::second_order, 1e-8);
  CHECK(loss(moments, w, kept) < 1e-6);
  for (const ChannelChoice choice : {ChannelChoice::wanda, ChannelChoice::magnitude}) {
    CHECK(loss(moments, w, choose_channels(moments, w, n - 2, choice)) > 1e-4);
  }
}

TEST_CASE("Channels that are silent, or that nobody reads, go first") {
  Matrix x = normal(100, 16, 3), w = normal(6, 16, 4);
  x.col(7).setZero();
  w.col(9).setZero();
  const Moments moments = moments_from(x, w);
  for (const ChannelChoice choice : {ChannelChoice::second_order, ChannelChoice::wanda}) {
    const Channels kept = choose_channels(moments, w, 14, choice);
    CHECK(std::find(kept.begin(), kept.end(), 7u) == kept.end());
    CHECK(std::find(kept.begin(), kept.end(), 9u) == kept.end());
  }
  const Channels kept = choose_channels(moments, w, 15, ChannelChoice::magnitude);
  CHECK(std::find(kept.begin(), kept.end(), 9u) == kept.end());
}

TEST_CASE("Greedy removals are those of every channel tried at each step") {
  const std::size_t n = 12;
  for (const unsigned seed : {10u, 20u, 30u, 40u}) {
    Matrix x = normal(120, n, seed);
    x += x * (0.4 * normal(n, n, seed + 1));
    const Matrix w = normal(4, n, seed + 2);
    const Moments moments = moments_from(x, w);
    Channels alive(n), removed;
    std::iota(alive.begin(), alive.end(), std::size_t{0});
    while (alive.size() > 3) {
      double least = std::numeric_limits<double>::infinity();
      Channels best;
      for (const std::size_t candidate : alive) {
        Channels kept = alive;
        std::erase(kept, candidate);
        const double lost = loss(moments, w, kept);
        if (lost < least) {
          least = lost;
          best = kept;
        }
      }
      for (const std::size_t channel : alive) {
        if (std::find(best.begin(), best.end(), channel) == best.end()) removed.push_back(channel);
      }
      alive = best;
    }
    removed.insert(removed.end(), alive.begin(), alive.end());
    CHECK(removal_order(moments, w, 3, ChannelChoice::second_order, 1e-9) == removed);
  }
}

TEST_CASE("The order of removals is that of every narrower choice") {
  const Matrix x = normal(150, 40, 5), w = normal(8, 40, 6);
  const Moments moments = moments_from(x, w);
  for (const ChannelChoice choice : kChoices) {
    const Channels order = removal_order(moments, w, 8, choice);
    Channels all = order;
    std::sort(all.begin(), all.end());
    Channels expected(40);
    std::iota(expected.begin(), expected.end(), std::size_t{0});
    REQUIRE(all == expected);
    for (const std::size_t count : {8u, 20u, 39u, 40u}) {
      Channels tail(order.end() - static_cast<std::ptrdiff_t>(count), order.end());
      std::sort(tail.begin(), tail.end());
      CHECK(tail == choose_channels(moments, w, count, choice));
    }
  }
}

TEST_CASE("Second order loses no more than scores of single channels") {
  const Index n = 96;
  const Matrix x = normal(300, 24, 7) * normal(24, n, 8) + 0.3 * normal(300, n, 9);
  const Matrix w = normal(16, n, 10);
  const Moments moments = moments_from(x, w);
  const double best = loss(moments, w, choose_channels(moments, w, 32, ChannelChoice::second_order));
  for (const ChannelChoice choice : {ChannelChoice::wanda, ChannelChoice::magnitude}) {
    CHECK(best < loss(moments, w, choose_channels(moments, w, 32, choice)));
  }
}

TEST_CASE("Few rows are enough to choose, counts that make no sense are refused") {
  const Matrix x = normal(5, 20, 11), w = normal(3, 20, 12);
  const Moments moments = moments_from(x, w);
  for (const ChannelChoice choice : kChoices) {
    CHECK(choose_channels(moments, w, 10, choice).size() == 10);
    CHECK_THROWS_AS(choose_channels(moments, w, 0, choice), InvalidArgument);
    CHECK_THROWS_AS(choose_channels(moments, w, 21, choice), InvalidArgument);
    CHECK_THROWS_AS(choose_channels(moments, w.leftCols(19), 10, choice), InvalidArgument);
  }
  Moments broken = moments;
  broken.gram(0, 0) = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS_AS(choose_channels(broken, w, 10, ChannelChoice::second_order), FormatError);
}
