// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <modicum/cag/citation.hpp>
#include <modicum/cag/knowledge_file.hpp>
#include <modicum/decode/generate.hpp>
#include <modicum/model/model.hpp>

namespace modicum::cag {

/// What an answer took.
struct Cost {
  std::size_t cached_tokens = 0;  ///< read from the file, not computed
  std::size_t question_tokens = 0;
  std::size_t new_tokens = 0;
  double prefill_seconds = 0;  ///< reading the question
  double decode_seconds = 0;   ///< writing the answer
};

struct Answer {
  std::string text;
  std::vector<Citation> citations;  ///< empty where no document holds the answer literally
  std::vector<TokenId> ids;         ///< with the stop token that ended it, if one did
  std::vector<float> log_probabilities;
  FinishReason finish_reason = FinishReason::length;
  Cost cost;
};

struct AskOptions {
  std::size_t max_new_tokens = 64;
  SamplingOptions sampling = {};
  std::vector<std::string> stop = {};
};

/// Documents that a model has read once, mapped from a knowledge file. Immutable and shared by copies;
/// questions may come from several threads, each branches from the end of the documents and leaves nothing
/// behind (cache-augmented generation, Chan et al. 2024, arXiv:2412.15605).
class Knowledge {
 public:
  /// Maps the file and checks it (see KnowledgeFile::open) and that it belongs to `model`: throws
  /// `FingerprintMismatch` naming what differs.
  static Knowledge open(const std::filesystem::path& path, const Model& model);

  /// Answers from the documents. Throws `ContextOverflow` with both counts before any work where documents,
  /// question and `max_new_tokens` do not fit, and `InvalidArgument` for an empty question.
  Answer ask(std::string_view question, const AskOptions& options = {},
             const TokenCallback& callback = {}) const;

  /// The branch at the end of the documents, of `tree()`: extend it with `question_ids`, or with anything
  /// else.
  const Branch& branch() const noexcept { return state_->trunk; }
  const KvTree& tree() const noexcept { return state_->tree; }
  /// The tokens that follow the documents for this question, up to where the answer begins.
  std::vector<TokenId> question_ids(std::string_view question) const;

  const KnowledgeFile& file() const noexcept { return state_->file; }
  const Model& model() const noexcept { return state_->model; }

 private:
  struct State {
    Model model;
    KnowledgeFile file;
    KvTree tree;
    Branch trunk;
  };
  explicit Knowledge(std::shared_ptr<const State> state) : state_(std::move(state)) {}
  std::shared_ptr<const State> state_;
};

}  // namespace modicum::cag
