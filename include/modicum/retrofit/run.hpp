// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include <modicum/base/progress.hpp>
#include <modicum/base/thread_pool.hpp>
#include <modicum/io/checkpoint.hpp>
#include <modicum/kv/tree.hpp>
#include <modicum/retrofit/plan.hpp>

namespace modicum::retrofit {

/// Token ids of calibration text: [sequences, length]. The last `held_out` sequences are never fitted on:
/// they choose dampings and give the errors that the report calls held out.
struct CalibrationTokens {
  std::span<const TokenId> tokens;
  std::size_t length = 0;
  std::size_t held_out = 0;

  std::size_t sequences() const { return length == 0 ? 0 : tokens.size() / length; }
};

/// Shares of the energy of what an edit had to reproduce: Σ w ‖t − t'‖² ÷ Σ w ‖t‖².
struct EditError {
  std::size_t layer = 0;  ///< of the source
  std::string edit;  ///< "ffn", "kv", "window", "depth", "quantize", "low_rank"; "refit": for integers before
  std::string module;  ///< "mlp.down_proj", …
  double before = 0;   ///< without its compensation
  double after = 0;    ///< with it
  double held_out_before = 0;
  double held_out_after = 0;
  double damping = 0;  ///< of the fit, relative to the mean of the Gram matrix's diagonal
};

/// What a run needs beside the mapped checkpoint, stated before it begins.
struct RunEstimate {
  std::uint64_t memory_bytes = 0;  ///< private, at most
  std::uint64_t disk_bytes = 0;    ///< beside the output, until the end
  std::uint64_t out_bytes = 0;     ///< weights of the output
  std::uint64_t in_bytes = 0;
  double pass_operations = 0;   ///< multiply-adds of reading the text, with its statistics
  double solve_operations = 0;  ///< and of the fits, in f64
};

struct RunOptions {
  /// Whether each token's error counts relative to its hidden state (`relative_factors`), as the norm that
  /// follows sees it.
  bool relative = true;
  /// Where what is done so far is kept, for a run that goes on after a crash; empty: beside the output.
  std::filesystem::path work = {};
  std::uint64_t shard_bytes = 0;  ///< of the output; 0: one file for one, shards of their size for shards
};

struct RunReport {
  std::vector<EditError> errors;
  std::uint64_t bytes_before = 0;
  std::uint64_t bytes_after = 0;
  std::size_t resumed_layers = 0;  ///< that an earlier run had done
  double seconds = 0;
  std::string solver;  ///< `linalg::backend()`
};

/// What `run` would need. Throws as `run` before it begins.
RunEstimate estimate(const Checkpoint& from, const Plan& plan, const CalibrationTokens& calibration);

/// Carries out a plan, a layer at a time: two streams of activations go through the layers, the original's
/// and that of the model as changed so far (of which each fit takes its inputs, with the original's output as
/// the target, so that later layers make up for earlier ones), and each layer's new weights are written
/// before the next begins. `to` becomes a Hugging Face directory that transformers loads unchanged; it
/// appears whole or not at all. An empty plan copies the files bit for bit.
///
/// A run that was killed goes on with the layer where it was, to the same bytes, if it is asked again with
/// the same model, plan, text, machine and number of threads.
///
/// Throws `InvalidArgument` for a plan that does not fit (`check_plan`), text of another length or too little
/// of it for a fit (it says how much is needed), and where `to` holds something already; `FormatError` for
/// weights that are not finite; `Unsupported`, `IoError` (disk full), `Cancelled`.
RunReport run(const Checkpoint& from, const std::filesystem::path& to, const Plan& plan,
              const CalibrationTokens& calibration, const RunOptions& options, ThreadPool& pool,
              const Progress& progress = {});

}  // namespace modicum::retrofit
