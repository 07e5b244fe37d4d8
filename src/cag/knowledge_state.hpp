// SPDX-License-Identifier: Apache-2.0
// What the copies of a `Knowledge` share.
#pragma once

#include <mutex>
#include <optional>
#include <vector>

#include <modicum/cag/knowledge.hpp>
#include <modicum/cag/select.hpp>

namespace modicum::cag {

/// A path through segments of the file, in their order.
struct Trunk {
  Branch branch;
  std::vector<std::size_t> chosen;  ///< segments
  std::size_t computed = 0;         ///< tokens that were read in place
};

/// One question on its way to an answer.
struct Turn {
  Trunk trunk;
  Branch from;               ///< the trunk or, later in a conversation, a branch below it
  std::vector<TokenId> ids;  ///< that are read from there
  std::string_view question;
};

struct Knowledge::State {
  State(Model m, KnowledgeFile f)
      : model(std::move(m)), file(std::move(f)), tree(model.transformer().tree()) {}

  /// Checksums, once; then that nobody wrote to the file.
  void verify() const;
  /// The path through all segments, put together once.
  Trunk whole();
  /// The path through the segments that BM25 finds for the question, at most `most` (0: any number) and with
  /// at least `room` tokens of the context left. The last one stays, as neighbouring questions often choose
  /// alike.
  Trunk selected(std::string_view question, std::size_t most, std::size_t room);
  /// The one of both that the file asks for.
  Trunk trunk_for(std::string_view question, std::size_t most, std::size_t room);
  /// A question that follows the documents.
  Turn turn_of(std::string_view question, const AskOptions& options);
  std::vector<TokenId> question_ids(std::string_view question) const;
  /// Documents of the chosen segments; empty where all are chosen.
  std::vector<std::string> names_of(const Trunk& trunk) const;
  /// One for each question, with its costs.
  std::vector<Answer> answers_to(std::span<const std::string_view> questions, const AskOptions& options,
                                 const TokenCallback& callback);

  Model model;
  KnowledgeFile file;
  KvTree tree;

 private:
  Trunk compose_path(std::vector<std::size_t> chosen);

  std::mutex mutex_;
  std::optional<Trunk> whole_;
  std::optional<Trunk> last_;
  std::optional<Bm25> index_;
};

/// The answers of all turns, stepped together, and the branches that they end on.
struct Answered {
  std::vector<Answer> answers;
  std::vector<Branch> ends;
};
Answered answer_turns(const Model& model, const KnowledgeFile& file, const KvTree& tree,
                      std::span<const Turn> turns, const AskOptions& options, const TokenCallback& callback);

}  // namespace modicum::cag
