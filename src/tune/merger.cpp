// SPDX-License-Identifier: Apache-2.0
#include "merger.hpp"

#include <thread>

namespace modicum::tune {

DType dtype_of(const TensorSpec& spec) {
  return spec.dtype == "F32" ? DType::f32 : spec.dtype == "F16" ? DType::f16 : DType::bf16;
}

std::uint64_t elements_of(const TensorSpec& spec) {
  std::uint64_t count = 1;
  for (const std::uint64_t extent : spec.shape) count *= extent;
  return count;
}

Merger::Merger(const MergePlan& plan, const MergeInputs& inputs, ThreadPool& pool, const Progress& progress)
    : plan_(plan), inputs_(inputs), pool_(pool), progress_(progress) {
  layers_ = inputs.sources()[inputs.foundation()].checkpoint.config().num_hidden_layers;
  for (const TensorSpec& spec : inputs.specs()) total_ += elements_of(spec);
}

void Merger::finish() {
  report(progress_, "merge", total_, total_);
}

CheckpointReader Merger::open(const TensorSpec& spec) {
  return CheckpointReader(inputs_, spec, pulse());
}

/// Told by the thread that waits for the others, and only now and then.
std::function<void()> Merger::pulse() {
  return [this, caller = std::this_thread::get_id()] {
    if (std::this_thread::get_id() != caller || ++pulses_ % 64 != 0) return;
    report(progress_, "merge", done_, total_);
  };
}

void Merger::read_whole() {
  std::vector<double> densities;
  for (const MergeInput& input : plan_.models) densities.push_back(input.density.at("", 0).value());
  WholeModelReader whole(densities, total_);
  for (std::size_t pass = 0; pass < WholeModelReader::kPasses; ++pass) {
    for (const TensorSpec& spec : inputs_.specs()) whole.read(open(spec), pool_);
    whole.next_pass();
  }
  whole_ = whole.result();
}

}  // namespace modicum::tune
