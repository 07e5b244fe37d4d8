// SPDX-License-Identifier: Apache-2.0
// The models of a plan, opened and found to belong together.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include <modicum/io/checkpoint.hpp>
#include <modicum/tune/merge_plan.hpp>

#include "adapter.hpp"
#include "vocabulary.hpp"

namespace modicum::tune {

/// A model, with the adapter that is applied to it.
struct Source {
  std::string path;
  Checkpoint checkpoint;
  std::optional<Adapter> adapter = {};
  std::optional<Vocabulary> vocabulary = {};  ///< read where it is needed
  std::string tokenizer_fingerprint = {};     ///< empty: no tokenizer.json

  /// The tensor in which what the result calls `tensor` is: a tied head is in the embedding.
  std::string stored_name(const std::string& tensor) const;
};

class MergeInputs {
 public:
  static constexpr std::size_t kNone = static_cast<std::size_t>(-1);

  /// Throws `IoError`, `FormatError`, `Unsupported` (quantised or low-rank models), and `InvalidArgument` for
  /// models of different shapes, missing tensors and vocabularies that differ against the plan's rule.
  explicit MergeInputs(const MergePlan& plan);

  const std::vector<Source>& sources() const noexcept { return sources_; }
  std::size_t base() const noexcept { return base_; }  ///< kNone: there is none
  std::size_t foundation() const noexcept { return foundation_; }
  const std::vector<std::size_t>& models() const noexcept { return models_; }
  std::size_t tokenizer() const noexcept { return tokenizer_; }
  std::size_t chat() const noexcept { return chat_; }
  const RowPlan& rows() const noexcept { return rows_; }
  bool tied() const noexcept { return tied_; }
  /// Tensors of the result, in the order in which they are written.
  const std::vector<TensorSpec>& specs() const noexcept { return specs_; }
  /// Identities of all files and what of them was read into the plan: for the key of a draft.
  std::string identity() const;

 private:
  std::size_t add(const std::string& path, const std::string& adapter);
  std::size_t find(const std::string& path, const char* field);
  void check_shapes() const;
  void plan_head(const MergePlan& plan);
  void plan_rows(const MergePlan& plan);
  void plan_specs(const MergePlan& plan);
  void check_tensors() const;

  std::vector<Source> sources_;
  std::size_t base_ = kNone;
  std::size_t foundation_ = kNone;
  std::vector<std::size_t> models_;
  std::size_t tokenizer_ = kNone;
  std::size_t chat_ = kNone;
  RowPlan rows_;
  bool tied_ = false;
  std::vector<TensorSpec> specs_;
};

/// Whether a tensor has a row for each token.
bool is_vocabulary_tensor(const std::string& name);

}  // namespace modicum::tune
