// SPDX-License-Identifier: Apache-2.0
// The two streams of a run through the layers, and what is done to each layer on the way.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <map>
#include <string>
#include <vector>

#include <modicum/base/progress.hpp>
#include <modicum/base/thread_pool.hpp>
#include <modicum/io/checkpoint.hpp>
#include <modicum/model/weights.hpp>
#include <modicum/retrofit/gptq.hpp>
#include <modicum/retrofit/kv_statistics.hpp>
#include <modicum/retrofit/ridge.hpp>
#include <modicum/retrofit/run.hpp>
#include <modicum/statistics/moments.hpp>

#include "activation_file.hpp"
#include "chunks.hpp"
#include "journal.hpp"
#include "../statistics/layer_pass.hpp"
#include "packed_linear.hpp"
#include "student_layer.hpp"

namespace modicum::retrofit {

/// Throws `InvalidArgument` for text that does not fit the model, or is too short for the plan's fits.
void check_calibration(const Plan& plan, const ModelConfig& config, const CalibrationTokens& calibration);

/// The linear layers that `plan` makes integers of, by their names in the source; the head aside.
std::vector<QuantizedModule> quantized_modules(const ModelConfig& config, const Plan& plan);

/// The linear layers that `plan` makes two factors of, by their names in the output, with their ranks.
std::map<std::string, std::size_t> low_rank_modules(const ModelConfig& config, const Plan& plan);

/// Edits every layer that stays, or takes it from the journal where it is done.
class LayerEditor {
 public:
  LayerEditor(const Checkpoint& from, const ModelWeights& weights, const Plan& plan,
              const CalibrationTokens& calibration, const RunOptions& options, Journal& journal,
              ThreadPool& pool, const Progress& progress);

  /// By layer of the source.
  std::map<std::size_t, LayerRecord> run();
  /// Layers that the journal had.
  std::size_t resumed() const noexcept { return resumed_; }

 private:
  /// Moments of the rows that are fitted on, and of those held out.
  struct FitMoments {
    Moments fitted;
    Moments held_out;
  };
  struct Gathering;
  struct InputStatistics;
  /// Rows of goal − have, and the factors that make their errors relative to the goal.
  struct Targets {
    std::vector<float> rows;
    std::vector<float> factors;
  };
  /// A layer on its way: where it stands, what is changed, what was lost.
  struct Step {
    std::size_t index = 0;  ///< among the layers that stay
    std::size_t layer = 0;  ///< of the source
    StudentLayer student;
    std::vector<EditError> errors = {};
  };

  // Which edits a layer has (layer_editor.cpp).
  bool bridges(std::size_t step) const;
  bool windowed(std::size_t layer) const;
  bool calibrated_rounding() const;
  bool refits_output(std::size_t layer) const;
  bool narrows_or_bridges(std::size_t step) const;
  bool edits(std::size_t step) const;
  std::size_t last_step() const;
  std::size_t window_before(std::size_t layer) const;
  std::size_t window_after(std::size_t step) const;

  // The streams (layer_editor.cpp).
  std::filesystem::path stream_path(const char* name, std::size_t step) const;
  ActivationFile new_stream(const char* name, std::size_t step) const;
  bool streams_are_there(std::size_t step) const;
  void open_streams(std::size_t step);
  const float* student_row(std::size_t row) const;
  /// Passes over the text in the order of a layer's edits.
  enum class Phase { teacher, inputs, output, ffn, down, factors, advance };
  void tell(const Chunk& chunk, Phase phase) const;
  /// Between two passes: lets the caller stop.
  Progress cancellation() const;
  LayerRecord edit(std::size_t step, bool more);
  void edit_with_text(Step& step, bool more);
  void edit_without_text(Step& step);
  void read_teacher(const Step& step, LayerPass& pass, ActivationFile& next, ActivationFile& middle);
  void read_inner(const Step& step, LayerPass& pass, const Chunk& chunk) const;
  void advance(const Step& step, ActivationFile& next);
  LayerPass pass_of(const ModelConfig& config) const;

  // Fits (layer_fits.cpp).
  Targets targets(const float* goal, const float* have, const LinearWeights& before, std::size_t rows) const;
  FitMoments finished(Gathering& gathering) const;
  void fit(Step& step, Linear linear, const char* edit, bool refit, const linalg::Matrix& before,
           const FitMoments& moments);

  // Attention (attention_edit.cpp).
  void edit_attention_inputs(Step& step);
  void merge_heads(Step& step, const KvStatistics& statistics);
  void edit_output(Step& step, const ActivationFile& goal);

  // Feed-forward (ffn_edit.cpp).
  void edit_ffn(Step& step, const ActivationFile& goal);
  struct RefineRows;
  bool alternates(std::size_t step) const;
  void narrow(Step& step, FitMoments& moments);
  void refine(Step& step, const RefineRows& rows);
  /// Adds a chunk that `pass` has read to the moments of the down projection.
  Targets gather_inner(const Step& step, const LayerPass& pass, const Chunk& chunk,
                       const ActivationFile& goal, Gathering& gathering);
  void edit_down(Step& step, const ActivationFile& goal);

  // Factors (low_rank_edit.cpp).
  void factor(Step& step);

  // Integers (rounding_edit.cpp).
  std::size_t bits_of_layer(std::size_t layer) const;
  bool rounds(std::size_t cols) const;
  RoundOptions round_options(const Step& step) const;
  /// Scales of the channels that `linears` read, folded into the norm before them and into `gram`.
  void fold_scales(Step& step, std::initializer_list<Linear> linears, linalg::Matrix& gram,
                   const ChannelMagnitudes& magnitudes);
  /// Layers that share an input: their scales folded, then rounded.
  void round_inputs(Step& step, std::initializer_list<Linear> linears, InputStatistics& inputs);
  void round_linear(Step& step, Linear linear, const linalg::Matrix* gram);

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
  const CalibrationTokens calibration_;
  const Chunks chunks_;
  const bool text_;
  ActivationFile teacher_, student_;
  bool diverged_ = false;
  std::size_t resumed_ = 0;
  std::uint64_t done_ = 0;
  std::uint64_t total_ = 0;
};

/// Moments that are being gathered, of fitted rows and of those held out.
struct LayerEditor::Gathering {
  SecondMoments fitted;
  SecondMoments held_out;

  Gathering(std::size_t inputs, std::size_t targets, DType dtype, const Chunks& chunks)
      : fitted(inputs, targets, dtype, chunks.rows(false)),
        held_out(inputs, targets, dtype, chunks.rows(true)) {}
  SecondMoments& of(const Chunk& chunk) { return chunk.held_out ? held_out : fitted; }
};

/// What is known of an input when the layers that read it are rounded.
struct LayerEditor::InputStatistics {
  SecondMoments moments;
  ChannelMagnitudes magnitudes;

  InputStatistics(std::size_t width, DType dtype, const Chunks& chunks)
      : moments(width, 0, dtype, chunks.rows(false)), magnitudes(width) {}
  void add(ThreadPool& pool, const float* x, std::size_t rows) {
    moments.add(pool, x, nullptr, rows);
    magnitudes.add(x, rows);
  }
  /// Takes the moments.
  linalg::Matrix mean_gram(ThreadPool& pool) {
    moments.finish(pool);
    return std::move(moments).moments().gram / static_cast<double>(magnitudes.rows());
  }
};

}  // namespace modicum::retrofit
