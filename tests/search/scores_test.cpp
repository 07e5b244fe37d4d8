// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <limits>
#include <tuple>
#include <vector>

#include <modicum/decode/random.hpp>
#include <modicum/search/scores.hpp>

#include "support/catch.hpp"

using modicum::BestContinuations;
using modicum::Continuation;
using modicum::RowScores;

namespace {

std::vector<Continuation> best_by_sorting(const std::vector<std::vector<float>>& rows,
                                          const std::vector<float>& scores, std::size_t k) {
  std::vector<Continuation> all;
  for (std::size_t beam = 0; beam < rows.size(); ++beam) {
    for (std::size_t t = 0; t < rows[beam].size(); ++t) {
      all.push_back({rows[beam][t] + scores[beam], beam, static_cast<modicum::TokenId>(t)});
    }
  }
  std::erase_if(all, [](const auto& c) { return c.score == -std::numeric_limits<float>::infinity(); });
  std::ranges::stable_sort(all, [](const auto& a, const auto& b) { return a.score > b.score; });
  all.resize(std::min(k, all.size()));
  return all;
}

bool same(const std::vector<Continuation>& a, const std::vector<Continuation>& b) {
  return std::ranges::equal(a, b, [](const auto& x, const auto& y) {
    return std::tie(x.score, x.beam, x.token) == std::tie(y.score, y.beam, y.token);
  });
}

}  // namespace

TEST_CASE("the best continuations are those that sorting all possible ones gives, ties and all") {
  modicum::Random random(5);
  for (int round = 0; round < 300; ++round) {
    const std::size_t vocabulary = 1 + random.next() % 300;
    const std::size_t beams = 1 + random.next() % 5;
    const std::size_t k = 1 + random.next() % 40;
    const bool many_ties = round % 2 == 0;
    std::vector<std::vector<float>> rows(beams, std::vector<float>(vocabulary));
    std::vector<float> scores(beams);
    BestContinuations best(k);
    for (std::size_t beam = 0; beam < beams; ++beam) {
      for (float& value : rows[beam]) {
        value = many_ties ? -static_cast<float>(random.next() % 8) : -static_cast<float>(random.uniform());
        value = random.next() % 16 == 0 ? -std::numeric_limits<float>::infinity() : value;
      }
      scores[beam] = beam % 3 == 2 ? modicum::kImpossibleScore : -static_cast<float>(random.next() % 3);
      RowScores row;
      row.read_log_probabilities(rows[beam]);
      best.add_all(beam, scores[beam], row);
    }
    CAPTURE(round, vocabulary, beams, k);
    REQUIRE(same(best.take(), best_by_sorting(rows, scores, k)));
  }
}

TEST_CASE("NaN is refused, also where it is all there is, and a row of impossible tokens is not") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float impossible = -std::numeric_limits<float>::infinity();
  RowScores row;
  for (const std::vector<float>& bad : {std::vector<float>{-1.0f, nan, -2.0f}, std::vector<float>(300, nan),
                                        std::vector<float>{impossible, nan, impossible}}) {
    CHECK_THROWS_AS(row.read_log_probabilities(bad), modicum::InvalidArgument);
    CHECK_THROWS_AS(row.read_logits(bad), modicum::InvalidArgument);
  }
  CHECK_NOTHROW(row.read_log_probabilities(std::vector<float>(5, impossible)));
  CHECK_THROWS_AS(row.read_logits(std::vector<float>(5, impossible)), modicum::InvalidArgument);
}

TEST_CASE("a score is divided by a power of the length") {
  CHECK(modicum::length_normalised(-6.0f, 3, 1.0) == -2.0f);
  CHECK(modicum::length_normalised(-6.0f, 3, 0.0) == -6.0f);
  CHECK(modicum::length_normalised(-6.0f, 3, -1.0) == Approx(-18.0f));
  CHECK(modicum::length_normalised(-6.0f, 4, 0.5) == -3.0f);
}
