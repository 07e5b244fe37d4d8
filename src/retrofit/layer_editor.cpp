// SPDX-License-Identifier: Apache-2.0
#include "layer_editor.hpp"

#include <algorithm>
#include <optional>
#include <system_error>
#include <utility>

#include <modicum/base/error.hpp>
#include <modicum/ops/elementwise.hpp>

#include "finite_weights.hpp"
#include "standard_form.hpp"

namespace modicum::retrofit {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kOp = "retrofit";

}  // namespace

LayerEditor::LayerEditor(const Checkpoint& from, const ModelWeights& weights, const Plan& plan,
                         const CalibrationTokens& calibration, const RunOptions& options, Journal& journal,
                         ThreadPool& pool, const Progress& progress)
    : from_(from),
      config_(from.config()),
      planned_(planned_config(config_, plan)),
      weights_(weights),
      plan_(plan),
      options_(options),
      journal_(journal),
      pool_(pool),
      progress_(progress),
      kept_(kept_layers(config_, plan)),
      calibration_(calibration),
      chunks_(calibration),
      text_(plan.needs_text()) {}

std::map<std::size_t, LayerRecord> LayerEditor::run() {
  std::map<std::size_t, LayerRecord> records;
  const std::size_t steps = last_step() + 1;
  std::size_t step = 0;
  for (; step < steps; ++step) {
    std::optional<LayerRecord> record = journal_.find(step);
    if (!record) break;
    diverged_ = record->diverged;
    records[kept_[step]] = std::move(*record);
  }
  if (text_ && step > 0 && step < steps && !streams_are_there(step)) {
    records.clear();  // a crash left layers without what the next one reads
    diverged_ = false;
    step = 0;
  }
  resumed_ = step;
  const std::size_t rows = text_ ? chunks_.all_rows() : 1;
  total_ = steps * rows;
  if (text_ && step < steps) open_streams(step);
  for (; step < steps; ++step) {
    done_ = step * rows;
    records[kept_[step]] = edit(step, step + 1 < steps);
  }
  return records;
}

bool LayerEditor::bridges(std::size_t step) const {
  const std::size_t next = step + 1 < kept_.size() ? kept_[step + 1] : config_.num_hidden_layers;
  return next != kept_[step] + 1;
}

bool LayerEditor::windowed(std::size_t layer) const {
  return plan_.window && std::binary_search(plan_.window->layers.begin(), plan_.window->layers.end(), layer);
}

bool LayerEditor::calibrated_rounding() const {
  return plan_.quantize &&
         (plan_.quantize->rounding == Rounding::gptq || plan_.quantize->scaling != Scaling::none);
}

bool LayerEditor::refits_output(std::size_t layer) const {
  return (plan_.kv && plan_.kv->refit != Refit::none) ||
         (windowed(layer) && plan_.window->refit != Refit::none);
}

bool LayerEditor::narrows_or_bridges(std::size_t step) const {
  return plan_.ffn || (bridges(step) && plan_.depth->refit != Refit::none);
}

bool LayerEditor::edits(std::size_t step) const {
  return plan_.kv || plan_.quantize || plan_.low_rank || windowed(kept_[step]) || narrows_or_bridges(step);
}

/// The last layer with anything to do: what comes after is as it was, and need not be computed.
std::size_t LayerEditor::last_step() const {
  std::size_t last = 0;
  for (std::size_t step = 0; step < kept_.size(); ++step) {
    if (edits(step)) last = step;
  }
  return last;
}

std::size_t LayerEditor::window_before(std::size_t layer) const {
  return config_.sliding_window.empty() ? 0 : config_.sliding_window[layer];
}

std::size_t LayerEditor::window_after(std::size_t step) const {
  return planned_.sliding_window.empty() ? 0 : planned_.sliding_window[step];
}

fs::path LayerEditor::stream_path(const char* name, std::size_t step) const {
  return journal_.folder() / (std::string(name) + "-" + std::to_string(step) + ".f32");
}

ActivationFile LayerEditor::new_stream(const char* name, std::size_t step) const {
  return ActivationFile::create(stream_path(name, step), chunks_.all_rows(), config_.hidden_size);
}

bool LayerEditor::streams_are_there(std::size_t step) const {
  const std::uint64_t bytes = chunks_.all_rows() * config_.hidden_size * sizeof(float);
  const auto whole = [&](const char* name) {
    std::error_code code;
    return fs::file_size(stream_path(name, step), code) == bytes && !code;
  };
  return whole("teacher") && (!diverged_ || whole("student"));
}

void LayerEditor::open_streams(std::size_t step) {
  if (step > 0) {
    const std::size_t rows = chunks_.all_rows();
    teacher_ = ActivationFile::open(stream_path("teacher", step), rows, config_.hidden_size);
    if (diverged_) student_ = ActivationFile::open(stream_path("student", step), rows, config_.hidden_size);
    return;
  }
  check_finite("model.embed_tokens.weight", weights_.embedding, pool_);
  teacher_ = new_stream("teacher", 0);
  for (const Chunk& chunk : chunks_.list()) {
    const auto ids = calibration_.tokens.subspan(chunk.first_row, chunk.rows);
    ops::gather_rows(weights_.embedding, ids, teacher_.row(chunk.first_row));
  }
}

/// Until the first edit the student is the original.
const float* LayerEditor::student_row(std::size_t row) const {
  return diverged_ ? student_.row(row) : teacher_.row(row);
}

void LayerEditor::tell(const Chunk& chunk, Phase phase) const {
  constexpr std::size_t kPhases = static_cast<std::size_t>(Phase::advance) + 1;
  const std::size_t before = static_cast<std::size_t>(phase) * chunks_.all_rows();
  report(progress_, kOp, done_ + (before + chunk.first_row) / kPhases, total_);
}

Progress LayerEditor::cancellation() const {
  return [this](std::string_view, std::uint64_t, std::uint64_t) {
    const std::size_t phases = static_cast<std::size_t>(Phase::advance) + 1;
    const std::size_t before = static_cast<std::size_t>(Phase::down) * chunks_.all_rows();
    return !progress_ || progress_(kOp, done_ + before / phases, total_);
  };
}

LayerPass LayerEditor::pass_of(const ModelConfig& config) const {
  return {config, weights_.dtype, chunks_.sequences(), chunks_.length(), pool_};
}

LayerRecord LayerEditor::edit(std::size_t index, bool more) {
  const std::size_t layer = kept_[index];
  check_finite(weights_.layers[layer], layer, pool_);
  Step step{index, layer, StudentLayer(from_, weights_.layers[layer], layer, weights_.dtype)};
  if (!text_) {
    report(progress_, kOp, done_, total_);
    edit_without_text(step);
    return journal_.save(index, step.student.take(), std::move(step.errors), true);
  }
  ActivationFile next = new_stream("teacher", index + 1);
  ActivationFile middle = new_stream("goal", 0);
  {
    LayerPass pass = pass_of(config_);
    read_teacher(step, pass, next, middle);
  }
  if (plan_.kv || calibrated_rounding()) edit_attention_inputs(step);
  if (refits_output(layer) || plan_.quantize) edit_output(step, middle);
  if (narrows_or_bridges(index) || plan_.quantize) edit_ffn(step, next);
  if (plan_.low_rank) factor(step);
  const bool diverged = diverged_ || edits(index) || bridges(index);
  ActivationFile next_student;
  if (diverged && more) {
    next_student = new_stream("student", index + 1);
    advance(step, next_student);
    next_student.sync();
  }
  next.sync();
  LayerRecord record = journal_.save(index, step.student.take(), std::move(step.errors), diverged);
  std::error_code ignored;
  for (const char* const name : {"teacher", "student"}) fs::remove(stream_path(name, index), ignored);
  teacher_ = std::move(next);
  student_ = std::move(next_student);
  diverged_ = diverged;
  return record;
}

void LayerEditor::edit_without_text(Step& step) {
  if (!plan_.quantize) return;
  for (const Linear linear : kLinears) round_linear(step, linear, nullptr);
}

/// The original's layer, and those after it that are dropped: what the student's layer has to give.
void LayerEditor::read_teacher(const Step& step, LayerPass& pass, ActivationFile& next,
                               ActivationFile& middle) {
  const std::size_t end = step.index + 1 < kept_.size() ? kept_[step.index + 1] : config_.num_hidden_layers;
  for (std::size_t dropped = step.layer + 1; dropped < end; ++dropped) {
    check_finite(weights_.layers[dropped], dropped, pool_);
  }
  for (const Chunk& chunk : chunks_.list()) {
    tell(chunk, Phase::teacher);
    const float* const x = teacher_.row(chunk.first_row);
    pass.run(weights_.layers[step.layer], window_before(step.layer), x, chunk.sequences);
    std::copy_n(pass.middle.data(), chunk.rows * config_.hidden_size, middle.row(chunk.first_row));
    for (std::size_t dropped = step.layer + 1; dropped < end; ++dropped) {
      const LayerPass::Floats between = pass.out;
      pass.run(weights_.layers[dropped], window_before(dropped), between.data(), chunk.sequences);
    }
    std::copy_n(pass.out.data(), chunk.rows * config_.hidden_size, next.row(chunk.first_row));
  }
}

void LayerEditor::read_inner(const Step& step, LayerPass& pass, const Chunk& chunk) const {
  const float* const x = student_row(chunk.first_row);
  pass.project(step.student.weights(), x, chunk.sequences);
  pass.attend(window_after(step.index));
  pass.close_attention(step.student.weights(), x);
  pass.open_ffn(step.student.weights());
}

void LayerEditor::advance(const Step& step, ActivationFile& next) {
  LayerPass pass = pass_of(planned_);
  for (const Chunk& chunk : chunks_.list()) {
    tell(chunk, Phase::advance);
    read_inner(step, pass, chunk);
    pass.close_ffn(step.student.weights());
    std::copy_n(pass.out.data(), chunk.rows * config_.hidden_size, next.row(chunk.first_row));
  }
}

void check_calibration(const Plan& plan, const ModelConfig& config, const CalibrationTokens& calibration) {
  if (!plan.needs_text()) return;
  const std::size_t sequences = calibration.sequences();
  const bool whole = calibration.length > 0 && sequences * calibration.length == calibration.tokens.size();
  if (!whole || calibration.length > config.max_position_embeddings) {
    fail({.op = kOp,
          .what = "calibration",
          .expected = "whole sequences of 1 to " + std::to_string(config.max_position_embeddings) + " tokens",
          .got = std::to_string(calibration.tokens.size()) + " tokens in sequences of " +
                 std::to_string(calibration.length)});
  }
  if (calibration.held_out == 0 || calibration.held_out >= sequences) {
    fail({.op = kOp,
          .what = "calibration held out",
          .expected = "1 to " + std::to_string(sequences == 0 ? 0 : sequences - 1) + " sequences",
          .got = std::to_string(calibration.held_out)});
  }
  for (const TokenId token : calibration.tokens) {
    if (token >= 0 && static_cast<std::size_t>(token) < config.vocab_size) continue;
    fail({.op = kOp,
          .what = "calibration token",
          .expected = "0 to " + std::to_string(config.vocab_size - 1),
          .got = std::to_string(token)});
  }
  // A fit of n inputs has n unknowns for each output: from fewer rows it would only learn them by heart.
  const std::size_t inputs = plan.ffn || plan.depth || plan.quantize || plan.low_rank
                                 ? std::max(config.intermediate_size, config.query_width())
                                 : std::max(config.hidden_size, config.query_width());
  const std::size_t rows = (sequences - calibration.held_out) * calibration.length;
  if (rows >= inputs) return;
  fail({.op = kOp,
        .what = "calibration for fits of " + std::to_string(inputs) + " inputs",
        .expected = "at least " + std::to_string(inputs) + " tokens beside those held out (better " +
                    std::to_string(4 * inputs) + ")",
        .got = std::to_string(rows),
        .todo = "give more text, or more tokens of it"});
}

}  // namespace modicum::retrofit
