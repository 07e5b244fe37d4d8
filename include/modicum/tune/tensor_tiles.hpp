// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <modicum/base/thread_pool.hpp>

namespace modicum::tune {

/// Some elements of one tensor as every model has them, in f32: `count` from element `first` on.
struct Tile {
  std::size_t index = 0;  ///< of the tensor's tiles
  std::uint64_t first = 0;
  std::size_t count = 0;
  const float* base = nullptr;  ///< null where there is no base
  const float* onto = nullptr;  ///< of the model that differences are added to; null where that is not known
  std::span<const float* const> models;
};

/// One tensor of several models, read a tile at a time. The tiles are the same for every thread and every
/// pass, so whatever is summed tile after tile has one order.
class TensorReader {
 public:
  /// Memory that a thread reads into.
  struct Buffer {
    std::vector<float> floats;
    std::vector<const float*> models;
  };

  virtual ~TensorReader() = default;
  /// Without the base.
  virtual std::size_t models() const = 0;
  virtual std::uint64_t elements() const = 0;
  virtual std::size_t tiles() const = 0;
  /// The tile points into `buffer`, or into what the reader holds. Safe from several threads, each with its
  /// own buffer.
  virtual Tile read(std::size_t tile, Buffer& buffer) const = 0;
};

/// Arrays in memory as a reader's models: how the methods are used on somebody else's tensors.
class ArrayReader final : public TensorReader {
 public:
  static constexpr std::size_t kTile = 16384;

  /// `base` may be empty; all others are as long as each other. The arrays are the caller's.
  ArrayReader(std::span<const float> base, std::vector<std::span<const float>> models)
      : base_(base), models_(std::move(models)) {}

  std::size_t models() const override { return models_.size(); }
  std::uint64_t elements() const override { return models_.empty() ? base_.size() : models_.front().size(); }
  std::size_t tiles() const override { return (elements() + kTile - 1) / kTile; }
  Tile read(std::size_t tile, Buffer& buffer) const override {
    const std::size_t first = tile * kTile;
    buffer.models.clear();
    for (const std::span<const float> model : models_) buffer.models.push_back(model.data() + first);
    return {.index = tile,
            .first = first,
            .count = std::min(kTile, static_cast<std::size_t>(elements()) - first),
            .base = base_.empty() ? nullptr : base_.data() + first,
            .models = buffer.models};
  }

 private:
  std::span<const float> base_;
  std::vector<std::span<const float>> models_;
};

/// Cuts a tensor's tiles into as many runs as there are threads and calls `task(run, tile)` for each tile,
/// those of a run in order. Whoever keeps one sum a run must not care in which run a tile was.
template <class F>
void for_each_tile(const TensorReader& tensor, ThreadPool& pool, std::size_t runs, F&& task) {
  const std::size_t tiles = tensor.tiles();
  pool.run(runs, [&](std::size_t run) {
    TensorReader::Buffer buffer;
    const std::size_t end = tiles * (run + 1) / runs;
    for (std::size_t i = tiles * run / runs; i < end; ++i) task(run, tensor.read(i, buffer));
  });
}

}  // namespace modicum::tune
