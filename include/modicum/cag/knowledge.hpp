// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <modicum/cag/citation.hpp>
#include <modicum/cag/knowledge_file.hpp>
#include <modicum/decode/generate.hpp>
#include <modicum/decode/tree_step_model.hpp>
#include <modicum/model/model.hpp>

namespace modicum::cag {

/// What an answer took.
struct Cost {
  std::size_t cached_tokens = 0;    ///< read from the file, not computed
  std::size_t computed_tokens = 0;  ///< of the documents, for this question: beginnings of moved segments
  std::size_t question_tokens = 0;
  std::size_t new_tokens = 0;
  double verify_seconds = 0;   ///< comparing checksums, once a process
  double compose_seconds = 0;  ///< choosing segments and putting them together
  double prefill_seconds = 0;  ///< reading the question (of `ask_many`: all questions)
  double decode_seconds = 0;   ///< writing the answer (of `ask_many`: all answers)
  double cite_seconds = 0;     ///< finding where the answer stands
};

struct Answer {
  std::string text;
  std::vector<Citation> citations;  ///< empty where no document holds the answer
  std::vector<TokenId> ids;         ///< with the stop token that ended it, if one did
  std::vector<float> log_probabilities;
  FinishReason finish_reason = FinishReason::length;
  /// How sure it is that the documents hold the answer, 0 to 1: the geometric mean of its tokens'
  /// probabilities, half of that where it is cited by most of its words only, and 0 where no line supports
  /// it.
  double confidence = 0;
  bool abstained = false;             ///< confidence below the threshold: the documents do not say
  std::vector<std::string> selected;  ///< documents attended to, where not all were
  Cost cost;
};

struct AskOptions {
  std::size_t max_new_tokens = 64;
  SamplingOptions sampling = {};
  std::vector<std::string> stop = {};
  bool cite = true;                     ///< false: no citations, and `confidence` is that of the text alone
  TextWriter write = {};                ///< empty: by `sampling`; see `beam_writer`
  std::optional<double> abstain_below;  ///< empty: as the file says
  std::size_t most_segments = 0;  ///< of files that select: segments a question attends to; 0: what fits
};

/// Where `Answer::confidence` separates answers that the documents hold from others on held-out questions of
/// the bundled model (examples/demo); `cag calibrate` measures it for others.
inline constexpr double kAbstainBelow = 0.45;

class Session;
struct Trunk;

/// Documents that a model has read once, mapped from a knowledge file. Immutable and shared by copies;
/// questions may come from several threads, each branches from the end of the documents and leaves nothing
/// behind (cache-augmented generation, Chan et al. 2024, arXiv:2412.15605).
class Knowledge {
 public:
  /// Maps the file and checks it (see KnowledgeFile::open) and that it belongs to `model`: throws
  /// `FingerprintMismatch` naming what differs. Checksums are compared before the first answer.
  static Knowledge open(const std::filesystem::path& path, const Model& model);

  /// Answers from the documents. Throws `ContextOverflow` with both counts before any work where documents,
  /// question and `max_new_tokens` do not fit, `InvalidArgument` for an empty question, and `Corrupt` where
  /// the file's bytes are not those that were written, or were changed in place since it was opened.
  Answer ask(std::string_view question, const AskOptions& options = {},
             const TokenCallback& callback = {}) const;

  /// Answers several questions together: the documents' keys and values, and the weights, are read once a
  /// step for all of them. Each answer is what `ask` gives.
  std::vector<Answer> ask_many(std::span<const std::string> questions, const AskOptions& options = {}) const;

  /// A conversation that begins at the end of the documents.
  Session session() const;

  /// The branch at the end of the documents, of `tree()`: extend it with `question_ids`, or with anything
  /// else. Verifies checksums first. Throws `Unsupported` where the documents do not fit into the context.
  Branch branch() const;
  const KvTree& tree() const noexcept;
  /// The tokens that follow the documents for this question, up to where the answer begins.
  std::vector<TokenId> question_ids(std::string_view question) const;

  std::size_t size() const noexcept { return file().token_ids().size(); }
  const KnowledgeFile& file() const noexcept;
  const Model& model() const noexcept;

 private:
  friend class Session;
  struct State;
  explicit Knowledge(std::shared_ptr<State> state) : state_(std::move(state)) {}
  std::shared_ptr<State> state_;
};

/// Questions and answers that build on each other, after the documents. Not for several threads at once.
class Session {
 public:
  explicit Session(Knowledge knowledge);
  ~Session();
  Session(Session&&) noexcept;
  Session& operator=(Session&&) noexcept;

  /// Answers, and keeps question and answer for the next. Throws as `Knowledge::ask`; the session is then as
  /// it was. Of files that select, the first question's segments stay for the whole session.
  Answer ask(std::string_view question, const AskOptions& options = {}, const TokenCallback& callback = {});

  /// Back to the documents alone: a node is dropped, nothing is computed.
  void reset();

  std::size_t turns() const noexcept { return turns_; }
  /// Tokens read so far, documents included; 0 before the first question.
  std::size_t size() const;

 private:
  Knowledge knowledge_;
  Branch at_;                     ///< after the last answer; empty: nothing asked yet
  std::vector<TokenId> unread_;   ///< the answer's last token, where it was no stop token
  std::unique_ptr<Trunk> trunk_;  ///< what all questions attend to
  std::size_t turns_ = 0;
};

}  // namespace modicum::cag
