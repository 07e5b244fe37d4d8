// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <limits>
#include <utility>

#include "kv_merge_heads.hpp"

namespace modicum::retrofit {
namespace {

using Eigen::Index;

double loss(const linalg::Matrix& pairs, std::size_t a, std::size_t b) {
  return pairs(static_cast<Index>(a), static_cast<Index>(b));
}

/// Of a head with all others of a group.
double loss_in(const linalg::Matrix& pairs, std::size_t head, const Heads& group) {
  double sum = 0.0;
  for (const std::size_t other : group) {
    if (other != head) sum += loss(pairs, head, other);
  }
  return sum;
}

double loss_of(const linalg::Matrix& pairs, const std::vector<Heads>& groups) {
  double sum = 0.0;
  for (const Heads& group : groups) {
    for (const std::size_t head : group) sum += loss_in(pairs, head, group);
  }
  return sum;
}

/// The pair of `free` heads that loses least; the first such.
Heads best_pair(const linalg::Matrix& pairs, const Heads& free) {
  Heads best;
  double least = std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; i < free.size(); ++i) {
    for (std::size_t j = i + 1; j < free.size(); ++j) {
      if (loss(pairs, free[i], free[j]) < least) {
        least = loss(pairs, free[i], free[j]);
        best = {free[i], free[j]};
      }
    }
  }
  return best;
}

std::vector<Heads> greedy_groups(const linalg::Matrix& pairs, std::size_t size) {
  Heads free;
  for (Index h = 0; h < pairs.rows(); ++h) free.push_back(static_cast<std::size_t>(h));
  std::vector<Heads> groups;
  while (!free.empty()) {
    Heads group = best_pair(pairs, free);
    for (const std::size_t head : group) std::erase(free, head);
    while (group.size() < size) {
      const auto next = std::min_element(free.begin(), free.end(), [&](std::size_t a, std::size_t b) {
        return loss_in(pairs, a, group) < loss_in(pairs, b, group);
      });
      group.push_back(*next);
      free.erase(next);
    }
    groups.push_back(std::move(group));
  }
  return groups;
}

/// What is gained where a's i-th head and b's j-th change places.
double gain(const linalg::Matrix& pairs, const Heads& a, std::size_t i, const Heads& b, std::size_t j) {
  const double before = loss_in(pairs, a[i], a) + loss_in(pairs, b[j], b);
  const double between = loss(pairs, a[i], b[j]);
  return before - (loss_in(pairs, a[i], b) - between) - (loss_in(pairs, b[j], a) - between);
}

/// Swaps the two heads that gain most; false where no swap gains more than rounding.
bool swap_best(const linalg::Matrix& pairs, std::vector<Heads>& groups, double least_gain) {
  double best = least_gain;
  std::pair<std::size_t*, std::size_t*> swapped{};
  for (std::size_t a = 0; a < groups.size(); ++a) {
    for (std::size_t b = a + 1; b < groups.size(); ++b) {
      for (std::size_t i = 0; i < groups[a].size(); ++i) {
        for (std::size_t j = 0; j < groups[b].size(); ++j) {
          const double gained = gain(pairs, groups[a], i, groups[b], j);
          if (gained > best) {
            best = gained;
            swapped = {&groups[a][i], &groups[b][j]};
          }
        }
      }
    }
  }
  if (swapped.first == nullptr) return false;
  std::swap(*swapped.first, *swapped.second);
  return true;
}

}  // namespace

std::vector<Heads> consecutive_groups(std::size_t heads, std::size_t size) {
  std::vector<Heads> groups(heads / size);
  for (std::size_t h = 0; h < heads; ++h) groups[h / size].push_back(h);
  return groups;
}

std::vector<Heads> group_heads(const linalg::Matrix& pair_loss, std::size_t size) {
  std::vector<Heads> best = consecutive_groups(static_cast<std::size_t>(pair_loss.rows()), size);
  if (size == 1 || best.size() == 1) return best;
  const double least_gain = 1e-12 * pair_loss.cwiseAbs().sum();
  std::vector<Heads> found = greedy_groups(pair_loss, size);
  for (std::vector<Heads>* groups : {&best, &found}) {
    while (swap_best(pair_loss, *groups, least_gain)) {
    }
  }
  if (loss_of(pair_loss, found) < loss_of(pair_loss, best)) best = std::move(found);
  for (Heads& group : best) std::sort(group.begin(), group.end());
  std::sort(best.begin(), best.end());
  return best;
}

}  // namespace modicum::retrofit
