// SPDX-License-Identifier: Apache-2.0
#include "layer_edits.hpp"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <modicum/base/error.hpp>
#include <modicum/ops/elementwise.hpp>
#include <modicum/retrofit/channels.hpp>
#include <modicum/retrofit/ridge.hpp>
#include <modicum/retrofit/statistics.hpp>

#include "activation_file.hpp"
#include "chunks.hpp"
#include "layer_pass.hpp"
#include "standard_form.hpp"
#include "student_layer.hpp"

namespace modicum::retrofit {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kOp = "retrofit";

/// Moments of the rows that are fitted on, and of those held out.
struct SplitMoments {
  SecondMoments fitted;
  SecondMoments held_out;

  SplitMoments(std::size_t inputs, std::size_t targets, DType dtype, const Chunks& chunks)
      : fitted(inputs, targets, dtype, chunks.rows(false)),
        held_out(inputs, targets, dtype, chunks.rows(true)) {}
  SecondMoments& of(const Chunk& chunk) { return chunk.held_out ? held_out : fitted; }
};

struct FitMoments {
  Moments fitted;
  Moments held_out;
};

class LayerEditor {
 public:
  LayerEditor(const Checkpoint& from, const ModelWeights& weights, const Plan& plan,
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
        chunks_(calibration),
        calibration_(calibration) {}

  std::map<std::size_t, LayerRecord> run(std::size_t& resumed) {
    std::map<std::size_t, LayerRecord> records;
    const std::size_t steps = last_step() + 1;
    std::size_t step = 0;
    for (; step < steps; ++step) {
      std::optional<LayerRecord> record = journal_.find(step);
      if (!record) break;
      diverged_ = record->diverged;
      records[kept_[step]] = std::move(*record);
    }
    resumed = step;
    total_ = steps * chunks_.all_rows();
    if (step < steps) open_streams(step);
    for (; step < steps; ++step) {
      done_ = step * chunks_.all_rows();
      records[kept_[step]] = edit(step, step + 1 < steps);
    }
    return records;
  }

 private:
  bool bridges(std::size_t step) const {
    const std::size_t next = step + 1 < kept_.size() ? kept_[step + 1] : config_.num_hidden_layers;
    return next != kept_[step] + 1;
  }
  bool windowed(std::size_t layer) const {
    return plan_.window &&
           std::binary_search(plan_.window->layers.begin(), plan_.window->layers.end(), layer);
  }
  bool refits_output(std::size_t layer) const {
    return (plan_.kv && plan_.kv->refit == Refit::least_squares) ||
           (windowed(layer) && plan_.window->refit == Refit::least_squares);
  }
  bool refits_ffn(std::size_t step) const {
    return plan_.ffn || (bridges(step) && plan_.depth->refit == Refit::least_squares);
  }
  bool edits(std::size_t step) const {
    return plan_.kv || plan_.quantize || plan_.low_rank || windowed(kept_[step]) || refits_ffn(step);
  }
  /// The last layer with anything to do: what comes after is as it was, and need not be computed.
  std::size_t last_step() const {
    std::size_t last = 0;
    for (std::size_t step = 0; step < kept_.size(); ++step) {
      if (edits(step)) last = step;
    }
    return last;
  }

  std::size_t window_before(std::size_t layer) const {
    return config_.sliding_window.empty() ? 0 : config_.sliding_window[layer];
  }
  std::size_t window_after(std::size_t step) const {
    return planned_.sliding_window.empty() ? 0 : planned_.sliding_window[step];
  }

  fs::path stream_path(const char* name, std::size_t step) const {
    return journal_.folder() / (std::string(name) + "-" + std::to_string(step) + ".f32");
  }
  ActivationFile new_stream(const char* name, std::size_t step) const {
    return ActivationFile::create(stream_path(name, step), chunks_.all_rows(), config_.hidden_size);
  }
  ActivationFile old_stream(const char* name, std::size_t step) const {
    return ActivationFile::open(stream_path(name, step), chunks_.all_rows(), config_.hidden_size);
  }

  void open_streams(std::size_t step) {
    if (step > 0) {
      teacher_ = old_stream("teacher", step);
      if (diverged_) student_ = old_stream("student", step);
      return;
    }
    teacher_ = new_stream("teacher", 0);
    for (const Chunk& chunk : chunks_.list()) {
      const auto ids = calibration_.tokens.subspan(chunk.first_row, chunk.rows);
      ops::gather_rows(weights_.embedding, ids, teacher_.row(chunk.first_row));
    }
  }

  const float* student_row(std::size_t row) const {
    return diverged_ ? student_.row(row) : teacher_.row(row);
  }

  void tell(const Chunk& chunk, double share) const {
    report(progress_, kOp,
           done_ + static_cast<std::size_t>(share * static_cast<double>(chunk.first_row + chunk.rows)),
           total_);
  }

  LayerRecord edit(std::size_t step, bool more) {
    const std::size_t layer = kept_[step];
    StudentLayer student(from_, weights_.layers[layer], layer, weights_.dtype);
    ActivationFile next = new_stream("teacher", step + 1);
    ActivationFile goal_middle = new_stream("goal", 0);
    std::vector<EditError> errors;
    {
      LayerPass pass(config_, weights_.dtype, chunks_.sequences(), chunks_.length(), pool_);
      read_teacher(step, pass, next, goal_middle);
      if (edits(step)) edit_projections(step, pass, student, errors);
    }
    LayerPass pass(planned_, weights_.dtype, chunks_.sequences(), chunks_.length(), pool_);
    if (refits_output(layer)) refit_output(step, pass, student, goal_middle, errors);
    if (refits_ffn(step)) edit_ffn(step, pass, student, next, errors);
    const bool diverged = diverged_ || edits(step) || bridges(step);
    ActivationFile next_student;
    if (diverged && more) {
      next_student = new_stream("student", step + 1);
      LayerPass last(planned_, weights_.dtype, chunks_.sequences(), chunks_.length(), pool_);
      advance(step, student.weights(), last, next_student);
      next_student.sync();
    }
    next.sync();
    LayerRecord record = journal_.save(step, student.take(), std::move(errors), diverged);
    std::error_code ignored;
    for (const char* const name : {"teacher", "student"}) fs::remove(stream_path(name, step), ignored);
    teacher_ = std::move(next);
    student_ = std::move(next_student);
    diverged_ = diverged;
    return record;
  }

  /// The original's layer, and those after it that are dropped: what the student's layer has to give.
  void read_teacher(std::size_t step, LayerPass& pass, ActivationFile& next, ActivationFile& middle) {
    const std::size_t layer = kept_[step];
    const std::size_t end = step + 1 < kept_.size() ? kept_[step + 1] : config_.num_hidden_layers;
    for (const Chunk& chunk : chunks_.list()) {
      tell(chunk, 0.3);
      pass.run(weights_.layers[layer], window_before(layer), teacher_.row(chunk.first_row), chunk.sequences);
      std::copy_n(pass.middle.data(), chunk.rows * config_.hidden_size, middle.row(chunk.first_row));
      for (std::size_t dropped = layer + 1; dropped < end; ++dropped) {
        const LayerPass::Floats x = pass.out;
        pass.run(weights_.layers[dropped], window_before(dropped), x.data(), chunk.sequences);
      }
      std::copy_n(pass.out.data(), chunk.rows * config_.hidden_size, next.row(chunk.first_row));
    }
  }

  void edit_projections(std::size_t, LayerPass&, StudentLayer&, std::vector<EditError>&) {}

  /// Rows of goal − have, and the factors that make their errors relative to the goal.
  struct Targets {
    std::vector<float> rows;
    std::vector<float> factors;
  };
  Targets targets(const float* goal, const float* have, std::size_t rows) const {
    const std::size_t width = config_.hidden_size;
    Targets t;
    t.rows.resize(rows * width);
    pool_.run(rows, [&](std::size_t r) {
      for (std::size_t c = 0; c < width; ++c)
        t.rows[r * width + c] = goal[r * width + c] - have[r * width + c];
    });
    if (options_.relative) t.factors = relative_factors(goal, rows, width);
    return t;
  }

  FitMoments finished(SplitMoments&& moments) {
    moments.fitted.finish(pool_);
    moments.held_out.finish(pool_);
    return {std::move(moments.fitted).moments(), std::move(moments.held_out).moments()};
  }

  /// The output projection against the original's hidden states after attention.
  void refit_output(std::size_t step, LayerPass& pass, StudentLayer& student, const ActivationFile& goal,
                    std::vector<EditError>& errors) {
    const std::size_t layer = kept_[step];
    SplitMoments moments(config_.query_width(), config_.hidden_size, weights_.dtype, chunks_);
    for (const Chunk& chunk : chunks_.list()) {
      tell(chunk, 0.5);
      const float* const x = student_row(chunk.first_row);
      pass.project(student.weights(), x, chunk.sequences);
      pass.attend(window_after(step));
      Targets t = targets(goal.row(chunk.first_row), x, chunk.rows);
      subtract_bias(student.weights().o, t, chunk.rows);
      moments.of(chunk).add(pool_, pass.heads.data(), t.rows.data(), chunk.rows, t.factors);
    }
    const FitMoments m = finished(std::move(moments));
    const linalg::Matrix w0 = widened(student.weights().o.weight);
    const RidgeFit fit = ridge_select(m.fitted, m.held_out, w0, default_dampings());
    errors.push_back(error_of(layer, plan_.kv ? "kv" : "window", Linear::o, m, w0, fit));
    student.set_matrix(Linear::o, fit.w);
  }

  /// Narrower, or making up for layers that are gone: the down projection against the original's output.
  void edit_ffn(std::size_t step, LayerPass& pass, StudentLayer& student, const ActivationFile& goal,
                std::vector<EditError>& errors) {
    const std::size_t layer = kept_[step];
    // Before channels go, the layer is as wide as it was.
    ModelConfig wide = planned_;
    wide.intermediate_size = config_.intermediate_size;
    LayerPass wide_pass(wide, weights_.dtype, chunks_.sequences(), chunks_.length(), pool_);
    SplitMoments moments(config_.intermediate_size, config_.hidden_size, weights_.dtype, chunks_);
    for (const Chunk& chunk : chunks_.list()) {
      tell(chunk, 0.7);
      read_inner(step, student.weights(), wide_pass, chunk);
      Targets t = targets(goal.row(chunk.first_row), wide_pass.middle.data(), chunk.rows);
      subtract_bias(student.weights().down, t, chunk.rows);
      moments.of(chunk).add(pool_, wide_pass.inner.data(), t.rows.data(), chunk.rows, t.factors);
    }
    FitMoments m = finished(std::move(moments));
    linalg::Matrix w0 = widened(student.weights().down.weight);
    if (plan_.ffn) {
      const std::vector<std::size_t> kept =
          choose_channels(m.fitted, w0, plan_.ffn->intermediate_size, plan_.ffn->choice);
      student.keep_rows(Linear::gate, kept);
      student.keep_rows(Linear::up, kept);
      w0 = linalg::Matrix(w0(Eigen::all, kept));
      m.fitted = moments_of(m.fitted, kept);
      m.held_out = moments_of(m.held_out, kept);
    }
    const bool refit =
        bridges(step) ? plan_.depth->refit == Refit::least_squares : plan_.ffn->refit == Refit::least_squares;
    const RidgeFit fit = refit ? ridge_select(m.fitted, m.held_out, w0, default_dampings())
                               : RidgeFit{.w = w0,
                                          .error = relative_error(w0, m.fitted),
                                          .held_out_error = relative_error(w0, m.held_out)};
    errors.push_back(error_of(layer, plan_.ffn ? "ffn" : "depth", Linear::down, m, w0, fit));
    student.set_matrix(Linear::down, fit.w);
  }

  void read_inner(std::size_t step, const LayerWeights& layer, LayerPass& pass, const Chunk& chunk) {
    const float* const x = student_row(chunk.first_row);
    pass.project(layer, x, chunk.sequences);
    pass.attend(window_after(step));
    pass.close_attention(layer, x);
    pass.open_ffn(layer);
  }

  void advance(std::size_t step, const LayerWeights& layer, LayerPass& pass, ActivationFile& next) {
    for (const Chunk& chunk : chunks_.list()) {
      tell(chunk, 1.0);
      read_inner(step, layer, pass, chunk);
      pass.close_ffn(layer);
      std::copy_n(pass.out.data(), chunk.rows * config_.hidden_size, next.row(chunk.first_row));
    }
  }

  void subtract_bias(const LinearWeights& weights, Targets& t, std::size_t rows) const {
    const std::size_t width = config_.hidden_size;
    if (weights.bias.empty()) return;
    for (std::size_t r = 0; r < rows; ++r) {
      for (std::size_t c = 0; c < width; ++c) t.rows[r * width + c] -= weights.bias[c];
    }
  }

  static EditError error_of(std::size_t layer, const char* edit, Linear linear, const FitMoments& m,
                            const linalg::Matrix& before, const RidgeFit& fit) {
    return {.layer = layer,
            .edit = edit,
            .module = std::string(module_of(linear)),
            .before = relative_error(before, m.fitted),
            .after = fit.error,
            .held_out_before = relative_error(before, m.held_out),
            .held_out_after = fit.held_out_error,
            .damping = fit.damping};
  }

  const Checkpoint& from_;
  const ModelConfig& config_;
  const ModelConfig planned_;
  const ModelWeights& weights_;
  const Plan& plan_;
  const RunOptions& options_;
  Journal& journal_;
  ThreadPool& pool_;
  const Progress& progress_;
  const std::vector<std::size_t> kept_;
  const Chunks chunks_;
  const CalibrationTokens calibration_;
  ActivationFile teacher_, student_;
  bool diverged_ = false;
  std::uint64_t done_ = 0;
  std::uint64_t total_ = 0;
};

}  // namespace

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
  // A fit of n inputs has n unknowns for each output: with fewer rows it would only learn them by heart.
  const bool fits_inner = plan.ffn || plan.depth;
  const std::size_t inputs = fits_inner ? std::max(config.intermediate_size, config.query_width())
                                        : std::max(config.hidden_size, config.query_width());
  const std::size_t rows = (sequences - calibration.held_out) * calibration.length;
  if (rows < inputs) {
    fail({.op = kOp,
          .what = "calibration for fits of " + std::to_string(inputs) + " inputs",
          .expected = "at least " + std::to_string(inputs) + " tokens beside those held out (better " +
                      std::to_string(4 * inputs) + ")",
          .got = std::to_string(rows),
          .todo = "give more text, or more tokens of it"});
  }
}

std::map<std::size_t, LayerRecord> edit_layers(const Checkpoint& from, const ModelWeights& weights,
                                               const Plan& plan, const CalibrationTokens& calibration,
                                               const RunOptions& options, Journal& journal, ThreadPool& pool,
                                               const Progress& progress, std::size_t& resumed) {
  return LayerEditor(from, weights, plan, calibration, options, journal, pool, progress).run(resumed);
}

}  // namespace modicum::retrofit
