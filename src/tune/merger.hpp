// SPDX-License-Identifier: Apache-2.0
// A plan carried out tensor by tensor, whatever becomes of the values.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include <modicum/base/progress.hpp>
#include <modicum/base/thread_pool.hpp>
#include <modicum/tune/merge_plan.hpp>

#include "checkpoint_reader.hpp"
#include "merge_inputs.hpp"
#include "method_dispatch.hpp"
#include "whole_model.hpp"

namespace modicum::tune {

DType dtype_of(const TensorSpec& spec);
std::uint64_t elements_of(const TensorSpec& spec);

class Merger {
 public:
  Merger(const MergePlan& plan, const MergeInputs& inputs, ThreadPool& pool, const Progress& progress);

  /// Counts a tensor as done, for the progress.
  void skip(const TensorSpec& spec) { done_ += elements_of(spec); }
  void finish();

  /// Calls f(run, tile, values) for each tile of a tensor of the result, its merged values in f32 beside what
  /// the model that is built upon has (`tile.onto`). Tiles of a run come in their order, in one thread.
  static constexpr std::size_t kTilesARun = 32;
  static std::size_t runs(const CheckpointReader& reader) {
    return (reader.tiles() + kTilesARun - 1) / kTilesARun;
  }
  template <class F>
  void merge(const CheckpointReader& reader, const TensorSpec& spec, F&& f) {
    merge_with(reader, spec, [&](const auto& method) {
      pool_.run(runs(reader), [&](std::size_t run) { merge_run(method, reader, run, f); });
    });
    done_ += elements_of(spec);
  }
  /// The same, one tile after another.
  template <class F>
  void merge_in_order(const CheckpointReader& reader, const TensorSpec& spec, F&& f) {
    merge_with(reader, spec, [&](const auto& method) {
      for (std::size_t run = 0; run < runs(reader); ++run) merge_run(method, reader, run, f);
    });
  }

  CheckpointReader open(const TensorSpec& spec);

 private:
  std::function<void()> pulse();
  void read_whole();

  template <class F>
  void merge_with(const CheckpointReader& reader, const TensorSpec& spec, F&& use) {
    report(progress_, "merge", done_, total_);
    if (plan_.method == Method::ties && plan_.definition == Definition::paper && !whole_) read_whole();
    with_method(settings_of(plan_, spec.name, layers_), whole_ ? &*whole_ : nullptr, [&](auto method) {
      method.prepare(reader, pool_);
      use(method);
    });
  }

  template <MergeMethod M, class F>
  static void merge_run(const M& method, const CheckpointReader& reader, std::size_t run, F&& f) {
    TensorReader::Buffer buffer;
    std::vector<float> scratch, values;
    const std::size_t end = std::min((run + 1) * kTilesARun, reader.tiles());
    for (std::size_t i = run * kTilesARun; i < end; ++i) {
      const Tile tile = reader.read(i, buffer);
      values.resize(tile.count);
      method.merge(tile, scratch, values.data());
      if constexpr (M::kOutcome == Outcome::difference) {
        for (std::size_t e = 0; e < tile.count; ++e) values[e] += tile.onto[e];
      }
      f(run, tile, values);
    }
  }

  const MergePlan& plan_;
  const MergeInputs& inputs_;
  ThreadPool& pool_;
  const Progress& progress_;
  std::size_t layers_ = 0;
  std::optional<WholeModel> whole_;
  std::uint64_t done_ = 0, total_ = 0;
  std::uint64_t pulses_ = 0;  ///< of the calling thread alone
};

}  // namespace modicum::tune
