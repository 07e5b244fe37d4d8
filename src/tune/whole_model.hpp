// SPDX-License-Identifier: Apache-2.0
// What TIES as its paper defines it must know of all tensors before it merges one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include <modicum/base/thread_pool.hpp>
#include <modicum/tune/magnitude_ranks.hpp>
#include <modicum/tune/tensor_tiles.hpp>

#include "method_dispatch.hpp"

namespace modicum::tune {

/// The model as one vector: how large a difference must be to be among the `density` largest (equal ones are
/// all kept, as the paper's code does), and the sign that most elements elect, which counts where differences
/// cancel out. Give it every tensor once in each pass.
class WholeModelReader {
 public:
  static constexpr std::size_t kPasses = 3;

  WholeModelReader(const std::vector<double>& densities, std::uint64_t elements);

  void read(const TensorReader& tensor, ThreadPool& pool);
  void next_pass();
  WholeModel result() const;

 private:
  MagnitudeRanks ranks_;
  std::vector<RankCut> cuts_;
  std::size_t pass_ = 0;
  std::int64_t vote_ = 0;
};

}  // namespace modicum::tune
