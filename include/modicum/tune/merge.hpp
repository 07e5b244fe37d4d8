// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <modicum/base/progress.hpp>
#include <modicum/base/thread_pool.hpp>
#include <modicum/tune/merge_plan.hpp>

namespace modicum::tune {

/// What became of all tensors of one kind. A change is what a merge makes of an element of the model that is
/// built upon: as computed in f32, and as it is stored. A small change may round to none.
struct MergedKind {
  std::string kind;  ///< "q_proj", …, "embedding", "head" or "others"
  std::size_t tensors = 0;
  std::uint64_t elements = 0;
  std::uint64_t changed = 0;  ///< elements whose value was to change
  std::uint64_t moved = 0;    ///< of these, those that are another number as stored
  double square = 0;          ///< Σ x² of the model that is built upon
  double change = 0;          ///< Σ of squared changes, as computed
  double stored_change = 0;   ///< Σ of squared changes, as stored
  double product = 0;         ///< Σ of their products

  void add(const MergedKind& other);
};

/// What a merge did.
struct MergeReport {
  std::vector<MergedKind> kinds;
  std::uint64_t bytes = 0;  ///< of all tensors of the result
  std::size_t tensors = 0;
  std::size_t resumed = 0;  ///< of these, those that an earlier run had finished before it was killed
  std::size_t rows = 0;     ///< of the vocabulary
  bool matched = false;     ///< rows were matched by token
  bool unchecked = false;   ///< no tokenizer.json told whether they had to be
  std::vector<std::string> partial_tokens;  ///< of the result, that some model lacks
  std::vector<std::string> dropped_tokens;  ///< of some model, that the result lacks
  std::vector<std::string> added_tokens;    ///< that the result's tokenizer was given
  double seconds = 0;

  /// "modicum.tune.merged/1": the plan and what it did, without times: what merge.json holds.
  std::string to_json(const MergePlan& plan) const;
};

struct MergeOptions {
  std::filesystem::path work = {};  ///< where the hidden folder of an unfinished result is; empty: beside it
  std::uint64_t shard_bytes = 0;    ///< 0: as in the model that is built upon
  /// Written between two notes from which a killed merge goes on.
  std::uint64_t sync_bytes = std::uint64_t{512} << 20;
};

/// Merges models into the new directory `to`: tensors one after another, a tensor's tiles in parallel,
/// weights read from their maps. Arithmetic is f32 with one rounding at the end, f64 for sums over a tensor.
/// Private memory does not grow with the models. The directory appears whole or not at all, with everything
/// else of the model that is built upon, and merge.json; a merge that was killed goes on where it was, to the
/// same bytes.
///
/// Throws `InvalidArgument` for plans that do not fit the models or each other, for vocabularies that differ
/// without a rule, and where `to` is there; `FormatError` for missing tensors, other shapes and numbers that
/// are not finite, by name; `Unsupported` for quantised models; `IoError`, `Cancelled`.
MergeReport merge(const MergePlan& plan, const std::filesystem::path& to, const MergeOptions& options,
                  ThreadPool& pool, const Progress& progress = {});

/// A plan's method on arrays of equal length in memory: `base` may be empty where the method has none,
/// `models` are as many as the plan has. `name` stands for the tensor's in settings and masks. What a method
/// adds to the model that is built upon is added to the base. Throws `InvalidArgument`.
void merge_arrays(const MergePlan& plan, const std::string& name, std::span<const float> base,
                  std::vector<std::span<const float>> models, std::span<float> out, ThreadPool& pool);

/// The key of the random mask of `tensor` for the plan's model number `model` (from 0): see `KeepMask`.
std::uint64_t mask_key(std::uint64_t seed, std::string_view tensor, std::size_t model);

}  // namespace modicum::tune
