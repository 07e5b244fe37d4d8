// SPDX-License-Identifier: Apache-2.0
#include <optional>
#include <utility>

#include <modicum/base/error.hpp>
#include <modicum/base/hash.hpp>
#include <modicum/tune/merge.hpp>

#include "../base/stopwatch.hpp"
#include "../io/checkpoint_draft.hpp"
#include "../io/checkpoint_layout.hpp"
#include "../io/copy_files.hpp"
#include "merge_directory.hpp"
#include "merge_inputs.hpp"
#include "merger.hpp"
#include "tally.hpp"
#include "write_tensor.hpp"

namespace modicum::tune {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kOp = "merge";

Tally write_tensors(Merger& merger, const std::vector<TensorSpec>& specs, CheckpointDraft& draft) {
  Tally tally = Tally::from_text(draft.state());
  for (std::size_t i = 0; i < draft.finished(); ++i) merger.skip(specs[i]);
  for (std::size_t i = draft.finished(); i < specs.size(); ++i) {
    tally.add(specs[i].name, write_tensor(merger, specs[i], draft, i));
    draft.finish(i, tally.to_text());
  }
  merger.finish();
  return tally;
}

void check_arrays(const MergePlan& plan, std::span<const float> base,
                  const std::vector<std::span<const float>>& models, std::size_t elements) {
  const bool based = needs_base(plan.method);
  if (models.size() != plan.models.size() || (based && base.empty() && elements > 0)) {
    fail({.op = kOp,
          .what = "arrays",
          .expected = std::to_string(plan.models.size()) + " models" + (based ? " and a base" : ""),
          .got = std::to_string(models.size()) + (base.empty() ? "" : " and a base")});
  }
  const auto check = [&](std::string what, std::size_t got) {
    if (got == elements) return;
    fail({.op = kOp,
          .what = std::move(what),
          .expected = std::to_string(elements) + " elements, as the result has",
          .got = std::to_string(got)});
  };
  if (based) check("base", base.size());
  for (std::size_t m = 0; m < models.size(); ++m) check("model " + std::to_string(m), models[m].size());
}

}  // namespace

MergeReport merge(const MergePlan& plan, const fs::path& to, const MergeOptions& options, ThreadPool& pool,
                  const Progress& progress) {
  const Stopwatch watch;
  const MergeInputs inputs(plan);
  const MergeDirectory directory(plan, inputs);  // throws where the other files do not go together
  const Checkpoint& like = inputs.sources()[inputs.foundation()].checkpoint;
  const std::uint64_t shard_bytes = options.shard_bytes != 0 ? options.shard_bytes : shard_bytes_of(like);
  const std::string decides =
      "modicum.tune.draft/1\n" + plan.to_json() + inputs.identity() + std::to_string(shard_bytes);
  CheckpointDraft draft(to, inputs.specs(),
                        {.kind = kOp,
                         .key = hash128_hex(decides).substr(0, 16),
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
  Merger merger(plan, inputs, pool, progress);
  report.kinds = write_tensors(merger, inputs.specs(), draft).kinds();
  directory.write(draft.directory());
  write_text(draft.directory() / "merge.json", report.to_json(plan));
  draft.commit();
  report.seconds = watch.seconds();
  return report;
}

void merge_arrays(const MergePlan& plan, const std::string& name, std::span<const float> base,
                  std::vector<std::span<const float>> models, std::span<float> out, ThreadPool& pool) {
  check_merge_plan(plan);
  check_arrays(plan, base, models, out.size());
  const ArrayReader reader(base, std::move(models));
  std::optional<WholeModel> whole;
  if (plan.method == Method::ties && plan.definition == Definition::paper) {
    std::vector<double> densities;
    for (const MergeInput& input : plan.models) densities.push_back(input.density.at("", 0).value());
    WholeModelReader read(densities, reader.elements());
    for (std::size_t pass = 0; pass < WholeModelReader::kPasses; ++pass) {
      read.read(reader, pool);
      read.next_pass();
    }
    whole = read.result();
  }
  with_method(settings_of(plan, name, 1), whole ? &*whole : nullptr, [&](auto method) {
    method.prepare(reader, pool);
    std::vector<std::vector<float>> scratch(pool.size());
    for_each_tile(reader, pool, pool.size(), [&](std::size_t run, const Tile& tile) {
      float* const to = out.data() + tile.first;
      method.merge(tile, scratch[run], to);
      if constexpr (decltype(method)::kOutcome == Outcome::difference) {
        for (std::size_t i = 0; i < tile.count; ++i) to[i] += tile.base[i];
      }
    });
  });
}

}  // namespace modicum::tune
