// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <map>
#include <optional>
#include <utility>

#include <modicum/base/atomic_directory.hpp>
#include <modicum/base/error.hpp>
#include <modicum/base/hash.hpp>
#include <modicum/linalg/dense.hpp>
#include <modicum/model/weights.hpp>
#include <modicum/ops/isa.hpp>
#include <modicum/retrofit/run.hpp>

#include "../base/quote.hpp"
#include "../base/stopwatch.hpp"
#include "../io/copy_files.hpp"
#include "assemble.hpp"
#include "estimate.hpp"
#include "finite_weights.hpp"
#include "journal.hpp"
#include "layer_editor.hpp"
#include "standard_form.hpp"

namespace modicum::retrofit {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kOp = "retrofit";

/// Everything that decides which bytes come out.
std::string key_of(const Checkpoint& from, const Plan& plan, const CalibrationTokens& calibration,
                   const RunOptions& options, ThreadPool& pool) {
  std::string text = "modicum.retrofit.journal/1\n";
  text += from.fingerprint(&pool, {}, Rehash::when_changed) + "\n" + plan.to_json();
  text += hash128_hex(std::as_bytes(calibration.tokens)) + " " + std::to_string(calibration.length) + " " +
          std::to_string(calibration.held_out) + "\n";
  text += std::string(ops::name_of(ops::active_isa())) + " " + std::to_string(pool.size()) + " " +
          linalg::backend() + (options.relative ? " relative" : "");
  return hash128_hex(text).substr(0, 16);
}

void copy_unchanged(const Checkpoint& from, const fs::path& to, const Progress& progress) {
  std::uint64_t done = 0, total = 0;
  for (const SafetensorsFile& file : from.files()) total += file.file().bytes().size();
  copy_other_files(from.directory(), to, kOp);
  copy_verbatim(from.directory() / "config.json", to / "config.json");
  for (const SafetensorsFile& file : from.files()) {
    copy_verbatim(file.file().path(), to / file.file().path().filename(),
                  [&](std::uint64_t of_file) { report(progress, "retrofit.write", done + of_file, total); });
    done += file.file().bytes().size();
  }
  report(progress, "retrofit.write", total, total);
  const fs::path index = from.directory() / "model.safetensors.index.json";
  if (from.files().size() > 1 || fs::exists(index)) copy_verbatim(index, to / index.filename());
}

std::uint64_t bytes_of(const Checkpoint& from) {
  std::uint64_t bytes = 0;
  for (const std::string& name : from.names()) bytes += from.info(name).bytes();
  return bytes;
}

/// The output head as integers, some rows at a time: a matrix of its own beside a tied embedding.
std::vector<NewTensor> rounded_head(const Checkpoint& from, const QuantizeEdit& edit, ThreadPool& pool) {
  constexpr std::size_t kRows = 4096;
  const ModelConfig& config = from.config();
  const char* const source = config.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
  const WeightView head = from.weight(source, config.vocab_size, config.hidden_size);
  check_finite(source, head, pool);
  const QuantizedModule module{"lm_head", *edit.head_bits, edit.group};
  std::vector<NewTensor> tensors;
  for (TensorSpec& spec : packed_specs(module, head.rows, head.cols, from.info(source).dtype)) {
    tensors.push_back({std::move(spec), {}});
  }
  for (std::size_t first = 0; first < head.rows; first += kRows) {
    const std::size_t count = std::min(kRows, head.rows - first);
    WeightView some = head;
    some.data = static_cast<const std::byte*>(head.data) + first * head.cols * size_of(head.dtype);
    some.rows = count;
    const RoundOptions options{.bits = module.bits, .group = module.group, .scale_dtype = head.dtype};
    RoundedMatrix part = round_nearest(floats_of(some), count, head.cols, options, nullptr, pool);
    part.rows = head.rows;  // the shape that is stored is the whole's
    const std::vector<std::vector<std::byte>> bytes = pack_linear(part, head.dtype);
    for (std::size_t i = 0; i < 2; ++i) {
      tensors[i].bytes.insert(tensors[i].bytes.end(), bytes[i].begin(), bytes[i].end());
    }
    if (tensors.size() > 2) tensors[2].bytes = bytes[2];
  }
  return tensors;
}

}  // namespace

RunEstimate estimate(const Checkpoint& from, const Plan& plan, const CalibrationTokens& calibration) {
  check_plan(plan, from.config());
  check_calibration(plan, from.config(), calibration);
  standard_config(from, plan);
  return estimate_run(from, plan, calibration);
}

RunReport run(const Checkpoint& from, const fs::path& to, const Plan& plan,
              const CalibrationTokens& calibration, const RunOptions& options, ThreadPool& pool,
              const Progress& progress) {
  const Stopwatch watch;
  check_plan(plan, from.config());
  check_calibration(plan, from.config(), calibration);
  const ModelWeights weights = ModelWeights::load(from);
  standard_config(from, plan);  // throws where there is no standard form, before any work
  RunReport report{.bytes_before = bytes_of(from), .solver = linalg::backend()};
  AtomicDirectory directory(to);
  if (plan.empty()) {
    copy_unchanged(from, directory.temporary(), progress);
    directory.commit();
    report.bytes_after = report.bytes_before;
    report.seconds = watch.seconds();
    return report;
  }
  linalg::set_threads(pool.size());
  Journal journal(to, options.work, key_of(from, plan, calibration, options, pool));
  LayerEditor editor(from, weights, plan, calibration, options, journal, pool, progress);
  std::map<std::size_t, LayerRecord> records = editor.run();
  report.resumed_layers = editor.resumed();
  if (plan.quantize && plan.quantize->head_bits) {
    const std::size_t step = from.config().num_hidden_layers;
    std::optional<LayerRecord> head = journal.find(step);
    if (!head) head = journal.save(step, rounded_head(from, *plan.quantize, pool), {}, true);
    records[step] = std::move(*head);
  }
  for (const auto& [layer, record] : records) {
    report.errors.insert(report.errors.end(), record.errors.begin(), record.errors.end());
  }
  report.bytes_after = assemble(from, directory.temporary(), plan, records, options.shard_bytes, progress);
  directory.commit();
  records.clear();
  journal.finish();
  report.seconds = watch.seconds();
  return report;
}

}  // namespace modicum::retrofit
