// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <utility>

#include <modicum/base/error.hpp>
#include <modicum/base/hash.hpp>
#include <modicum/tune/merge.hpp>

#include "../base/stopwatch.hpp"
#include "../io/checkpoint_draft.hpp"
#include "../io/checkpoint_layout.hpp"
#include "../io/copy_files.hpp"
#include "checkpoint_reader.hpp"
#include "merge_directory.hpp"
#include "merge_inputs.hpp"
#include "method_dispatch.hpp"
#include "tally.hpp"
#include "whole_model.hpp"

namespace modicum::tune {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kOp = "merge";
/// Tiles that a thread takes at a time and writes at once.
constexpr std::size_t kTilesARun = 32;

DType dtype_of(const TensorSpec& spec) {
  return spec.dtype == "F32" ? DType::f32 : spec.dtype == "F16" ? DType::f16 : DType::bf16;
}

std::uint64_t elements_of(const TensorSpec& spec) {
  std::uint64_t count = 1;
  for (const std::uint64_t extent : spec.shape) count *= extent;
  return count;
}

class Merger {
 public:
  Merger(const MergePlan& plan, const MergeInputs& inputs, ThreadPool& pool, const Progress& progress)
      : plan_(plan), inputs_(inputs), pool_(pool), progress_(progress) {
    layers_ = inputs.sources()[inputs.foundation()].checkpoint.config().num_hidden_layers;
    for (const TensorSpec& spec : inputs.specs()) total_ += elements_of(spec);
  }

  Tally run(CheckpointDraft& draft) {
    Tally tally = Tally::from_text(draft.state());
    const std::vector<TensorSpec>& specs = inputs_.specs();
    for (std::size_t i = 0; i < draft.finished(); ++i) done_ += elements_of(specs[i]);
    const bool whole = plan_.method == Method::ties && plan_.definition == Definition::paper;
    if (whole && draft.finished() < specs.size()) whole_ = read_whole();
    for (std::size_t i = draft.finished(); i < specs.size(); ++i) {
      tally.add(specs[i].name, merge_tensor(draft, i));
      done_ += elements_of(specs[i]);
      draft.finish(i, tally.to_text());
    }
    report(progress_, kOp, total_, total_);
    return tally;
  }

 private:
  /// Told by the thread that waits for the others, and only now and then.
  std::function<void()> pulse() {
    return [this, caller = std::this_thread::get_id()] {
      if (std::this_thread::get_id() != caller || ++pulses_ % 64 != 0) return;
      report(progress_, kOp, done_, total_);
    };
  }

  WholeModel read_whole() {
    std::vector<double> densities;
    for (const MergeInput& input : plan_.models) densities.push_back(input.density.at("", 0).value());
    WholeModelReader whole(densities, total_);
    for (std::size_t pass = 0; pass < WholeModelReader::kPasses; ++pass) {
      for (const TensorSpec& spec : inputs_.specs()) {
        report(progress_, kOp, done_, total_);
        whole.read(CheckpointReader(inputs_, spec, pulse()), pool_);
      }
      whole.next_pass();
    }
    return whole.result();
  }

  MergedKind merge_tensor(const CheckpointDraft& draft, std::size_t index) {
    const TensorSpec& spec = inputs_.specs()[index];
    report(progress_, kOp, done_, total_);
    const CheckpointReader reader(inputs_, spec, pulse());
    std::vector<MergedKind> parts(reader.tiles());
    with_method(settings_of(plan_, spec.name, layers_), whole_ ? &*whole_ : nullptr, [&](auto method) {
      method.prepare(reader, pool_);
      pool_.run((reader.tiles() + kTilesARun - 1) / kTilesARun,
                [&](std::size_t run) { write_run(method, reader, run, draft, index, parts); });
    });
    MergedKind sum;  // in the order of the tiles
    for (const MergedKind& part : parts) sum.add(part);
    return sum;
  }

  template <MergeMethod M>
  void write_run(const M& method, const CheckpointReader& reader, std::size_t run,
                 const CheckpointDraft& draft, std::size_t index, std::vector<MergedKind>& parts) const {
    const TensorSpec& spec = inputs_.specs()[index];
    const DType dtype = dtype_of(spec);
    TensorReader::Buffer buffer;
    std::vector<float> scratch, values;
    std::vector<std::byte> bytes;
    const std::size_t first = run * kTilesARun, end = std::min(first + kTilesARun, reader.tiles());
    std::uint64_t offset = 0;
    for (std::size_t i = first; i < end; ++i) {
      const Tile tile = reader.read(i, buffer);
      if (i == first) offset = tile.first * size_of(dtype);
      values.resize(tile.count);
      method.merge(tile, scratch, values.data());
      if constexpr (M::kOutcome == Outcome::difference) {
        for (std::size_t e = 0; e < tile.count; ++e) values[e] += tile.onto[e];
      }
      const std::size_t at = bytes.size();
      bytes.resize(at + tile.count * size_of(dtype));
      parts[i] = store_values(values.data(), tile.onto, tile.count, dtype, bytes.data() + at, spec.name);
    }
    draft.write(index, offset, bytes);
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

}  // namespace

MergeReport merge(const MergePlan& plan, const fs::path& to, const MergeOptions& options, ThreadPool& pool,
                  const Progress& progress) {
  const Stopwatch watch;
  const MergeInputs inputs(plan);
  const MergeDirectory directory(plan, inputs);  // throws where the other files do not go together
  const Checkpoint& like = inputs.sources()[inputs.foundation()].checkpoint;
  const std::uint64_t shard_bytes = options.shard_bytes != 0 ? options.shard_bytes : shard_bytes_of(like);
  const std::string key =
      "modicum.tune.draft/1\n" + plan.to_json() + inputs.identity() + std::to_string(shard_bytes);
  CheckpointDraft draft(to, inputs.specs(),
                        {.kind = kOp,
                         .key = hash128_hex(key).substr(0, 16),
                         .work = options.work,
                         .shard_bytes = shard_bytes,
                         .sync_bytes = options.sync_bytes});
  MergeReport report{.tensors = inputs.specs().size(),
                     .resumed = draft.finished(),
                     .rows = inputs.rows().rows,
                     .matched = inputs.rows().mapped(),
                     .unchecked = inputs.rows().unchecked,
                     .partial_tokens = inputs.rows().partial,
                     .dropped_tokens = inputs.rows().dropped,
                     .added_tokens = inputs.rows().added};
  for (const TensorSpec& spec : inputs.specs()) report.bytes += elements_of(spec) * size_of(dtype_of(spec));
  report.kinds = Merger(plan, inputs, pool, progress).run(draft).kinds();
  directory.write(draft.directory());
  write_text(draft.directory() / "merge.json", report.to_json(plan));
  draft.commit();
  report.seconds = watch.seconds();
  return report;
}

}  // namespace modicum::tune
