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
#include <modicum/linalg/dense.hpp>
#include <modicum/text/tokenizer.hpp>
#include <modicum/tune/merge.hpp>

namespace modicum::tune {

/// Sequences whose activations are to stay as they are: whole conversations, say. Row-major [sequences,
/// length], each filled up at its end with any token.
struct ProtectedText {
  std::span<const TokenId> tokens;
  std::size_t length = 0;
  std::vector<std::size_t> lengths;  ///< of each sequence without what fills it up
};

struct ProjectOptions {
  /// The share of the protected activations' energy, Σ ‖x‖² over their tokens, whose directions are taken out
  /// of the update: 0 takes out nothing, 1 all that occurred.
  double energy = 0.99;
  /// Whether changes of norms, biases, embedding and head come along (else they stay as the instruct model
  /// has them): of these no inputs tell what they do to protected text.
  bool others = true;
  MergeOptions merge = {};
};

/// What was taken out of one linear layer's update.
struct ProjectedModule {
  std::string module;
  std::size_t inputs = 0;
  std::size_t directions = 0;  ///< of its inputs, that are protected
  double kept = 1;             ///< ‖ΔW P‖ / ‖ΔW‖, Frobenius
  double before = 0;           ///< ‖ΔW x‖ / ‖W x‖ on protected text, root mean squares
  double after = 0;            ///< the same of ΔW P
};

struct ProjectReport {
  std::vector<ProjectedModule> modules;
  std::size_t tokens = 0;  ///< whose activations are protected
  std::uint64_t bytes = 0;
  double seconds = 0;
};

/// P = I − V Vᵀ with V [n, r] the fewest leading eigenvectors of a Gram matrix [n, n] that hold `energy` of
/// its trace, without those of less than 1e-7 of it. Returns V.
linalg::Matrix protected_directions(linalg::Matrix gram, double energy);

/// Keeps of a fine-tuned model's update what the instruct model's own conversations do not look at: writes
/// W + (W_tuned − W) P into the new directory `to`, with P for each linear layer from its inputs on the
/// protected text, in closed form (null spaces as in Wang et al. 2021, arXiv:2107.05592, and AlphaEdit, Fang
/// et al. 2024, arXiv:2410.02355, applied to an update that is there already). Needs no base: only the
/// instruct model and the one that was tuned from it, or its adapter.
///
/// The first token of a sequence is left out of the statistics: its activations are many times as large as
/// any other's and would be protected alone. Experimental: whether manners survive is for a guard to tell.
///
/// Throws as `merge` does, and `InvalidArgument` for an energy outside 0 to 1 or text that is empty;
/// `ContextOverflow` for sequences beyond the context.
ProjectReport project(const std::string& instruct, const MergeInput& tuned, const ProtectedText& text,
                      const std::filesystem::path& to, const ProjectOptions& options, ThreadPool& pool,
                      const Progress& progress = {});

}  // namespace modicum::tune
