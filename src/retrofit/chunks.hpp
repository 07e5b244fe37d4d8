// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include <modicum/retrofit/run.hpp>

namespace modicum::retrofit {

/// Some sequences of the calibration text, all fitted on or all held out.
struct Chunk {
  std::size_t first_row = 0;
  std::size_t rows = 0;
  std::size_t sequences = 0;
  bool held_out = false;
};

/// The sequences that go through a layer together: about as many rows as keep the kernels busy.
class Chunks {
 public:
  explicit Chunks(const CalibrationTokens& calibration)
      : length_(calibration.length),
        sequences_(std::max<std::size_t>(1, kRows / std::max<std::size_t>(1, calibration.length))) {
    const std::size_t all = calibration.sequences();
    split(0, all - calibration.held_out, false);
    split(all - calibration.held_out, all, true);
  }

  const std::vector<Chunk>& list() const noexcept { return list_; }
  std::size_t length() const noexcept { return length_; }
  std::size_t sequences() const noexcept { return sequences_; }  ///< of a chunk, at most
  std::size_t rows(bool held_out) const {
    std::size_t sum = 0;
    for (const Chunk& chunk : list_) sum += chunk.held_out == held_out ? chunk.rows : 0;
    return sum;
  }
  std::size_t all_rows() const { return rows(false) + rows(true); }

 private:
  static constexpr std::size_t kRows = 1024;

  void split(std::size_t begin, std::size_t end, bool held_out) {
    for (std::size_t first = begin; first < end; first += sequences_) {
      const std::size_t count = std::min(sequences_, end - first);
      list_.push_back({first * length_, count * length_, count, held_out});
    }
  }

  std::size_t length_;
  std::size_t sequences_;
  std::vector<Chunk> list_;
};

}  // namespace modicum::retrofit
