// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <modicum/cag/document.hpp>
#include <modicum/text/tokenizer.hpp>

namespace modicum::cag {

/// What the model is told before the documents, unless the caller says otherwise.
inline constexpr std::string_view kInstruction = "Answer briefly, from the documents below only.";

/// A chat template rendered once around two places, for the documents and for the question. The default
/// serves models without a template.
struct PromptFormat {
  std::string before_documents = std::string(kInstruction) + "\n\n";
  std::string before_question = "\nQuestion: ";
  std::string after_question = "\nAnswer:";
  std::string after_answer = "\n\nQuestion: ";  ///< between an answer and the next question
  bool add_special_tokens = true;  ///< the tokenizer adds BOS and the like (templates write them themselves)

  bool operator==(const PromptFormat&) const = default;
};

/// Where a document lies in the prompt, in bytes of the prompt's text and in its tokens.
struct DocumentSpan {
  std::size_t text_begin = 0;
  std::size_t text_end = 0;
  std::size_t token_begin = 0;
  std::size_t token_end = 0;
};

/// Tokens that are read by themselves, after the first part alone.
struct PromptSegment {
  std::size_t token_begin = 0;
  std::size_t token_end = 0;
  std::optional<std::size_t> document;  ///< empty: what stands before the documents
};

/// The part of a prompt that comes before every question, as text and tokens.
///
/// A question's first characters could merge with the last ones of this part into other tokens. So the part
/// ends where no question changes it (tried with questions that begin in many ways), and each question is
/// tokenized together with the text from `resume_byte` on, the last place before the question where
/// tokenization starts afresh.
struct SharedPrompt {
  std::string text;  ///< before_documents, the documents, before_question
  std::vector<TokenId> ids;
  std::vector<std::size_t> begins;  ///< of each token, the byte of `text`
  std::vector<DocumentSpan> documents;
  std::vector<PromptSegment> segments;  ///< without gaps; one for all of a joint prompt
  std::size_t resume_byte = 0;
  std::size_t resume_token = 0;
};

/// Joins documents as "[name]\ntext\n\n" and tokenizes all in one go.
SharedPrompt make_shared_prompt(const Tokenizer& tokenizer, const PromptFormat& format,
                                std::span<const Document> documents);

/// The same text but for before_question, which belongs to the question then. Each document is tokenized by
/// itself, and one of more than `segment_tokens` tokens in parts that end at line ends, where there are any:
/// what one of them holds changes nothing in the others.
SharedPrompt make_block_prompt(const Tokenizer& tokenizer, const PromptFormat& format,
                               std::span<const Document> documents, std::size_t segment_tokens);

/// The tokens of a question after the shared part: surrounding white space is left out. `resume_text` is the
/// shared text from `resume_byte` on and `resume_ids` the shared ids from `resume_token` on. Throws
/// `InvalidArgument` for an empty question, one that is not UTF-8, and one whose beginning would change the
/// shared tokens.
std::vector<TokenId> question_ids(const Tokenizer& tokenizer, const PromptFormat& format,
                                  std::string_view resume_text, bool from_start,
                                  std::span<const TokenId> resume_ids, std::string_view question);

}  // namespace modicum::cag
