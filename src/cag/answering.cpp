// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include <modicum/base/error.hpp>
#include <modicum/decode/tree_step_model.hpp>

#include "../base/stopwatch.hpp"
#include "knowledge_state.hpp"

namespace modicum::cag {
namespace {

/// Tokens of an answer whose attention is watched, beside the last of the question.
constexpr std::size_t kWatchedTokens = 8;

/// What an answer counts that is supported by most of its words, beside one that stands in the text.
constexpr double kReworded = 0.5;

void check_room(const Model& model, std::span<const Turn> turns, std::size_t max_new_tokens) {
  const std::size_t context = model.config().max_position_embeddings;
  for (const Turn& turn : turns) {
    const std::size_t total = turn.from.size() + turn.ids.size() + max_new_tokens;
    if (total <= context) continue;
    fail<ContextOverflow>({.op = "cag.ask",
                           .what = "context",
                           .expected = "at most " + std::to_string(context) + " tokens",
                           .got = std::to_string(total) + " (documents " + std::to_string(turn.from.size()) +
                                  ", question " + std::to_string(turn.ids.size()) + ", answer up to " +
                                  std::to_string(max_new_tokens) + ")",
                           .todo = "shorten the question, the documents or max_new_tokens"});
  }
}

/// Reads question and answer once more, watching where the answer's tokens, and the question's last, look.
/// Returns a weight for each token of the file.
std::vector<float> attention_on_documents(const Model& model, const KnowledgeFile& file, const KvTree& tree,
                                          const Turn& turn, std::span<const TokenId> answer) {
  std::vector<TokenId> ids = turn.ids;
  const auto watched = answer.first(std::min(answer.size(), kWatchedTokens));
  ids.insert(ids.end(), watched.begin(), watched.end());
  // The upper two thirds of the layers: below, attention goes to neighbours rather than to what is meant.
  const std::size_t layers = model.config().num_hidden_layers;
  AttentionProbe probe{.first_row = turn.ids.size() - 1,
                       .first_layer = layers / 3,
                       .layer_step = std::max<std::size_t>(1, layers / 12)};
  const Branch leaf = tree.grow(turn.from, ids);
  model.transformer().read({&leaf, 1}, nullptr, {}, &probe);
  std::vector<float> mass(file.token_ids().size());
  std::size_t position = 0;
  for (const std::size_t i : turn.trunk.chosen) {
    const KnownSegment& segment = file.manifest().segments[i];
    for (std::size_t token = segment.token_begin; token < segment.token_end; ++token, ++position) {
      if (position < probe.mass.size()) mass[token] = probe.mass[position];
    }
  }
  return mass;
}

/// The geometric mean of the probabilities of an answer's tokens.
double mean_probability(std::span<const float> log_probabilities) {
  double sum = 0;
  for (const float p : log_probabilities) sum += static_cast<double>(p);
  return log_probabilities.empty() ? 0 : std::exp(sum / static_cast<double>(log_probabilities.size()));
}

void support(const Model& model, const KnowledgeFile& file, const KvTree& tree, const Turn& turn,
             const AskOptions& options, Answer& answer) {
  const Stopwatch watch;
  answer.confidence = mean_probability(answer.log_probabilities);
  if (options.cite) {
    const std::vector<float> mass = attention_on_documents(model, file, tree, turn, answer.ids);
    answer.citations = cite(file.prompt(), file.manifest().documents, turn.question, answer.text,
                            {mass, file.token_bytes()});
    const auto literal = [](const Citation& citation) { return citation.literal; };
    if (!std::ranges::all_of(answer.citations, literal)) answer.confidence *= kReworded;
    if (answer.citations.empty()) answer.confidence = 0;
  }
  answer.abstained = answer.confidence < options.abstain_below.value_or(file.manifest().abstain_below);
  answer.cost.cite_seconds = watch.seconds();
}

/// The texts after the questions: together, or each by the writer that was asked for.
std::vector<GenerateResult<Branch>> written(TreeStepModel& model, std::vector<GenerateStart<Branch>> starts,
                                            const GenerateOptions& generation, const Tokenizer& tokenizer,
                                            const AskOptions& options, const TokenCallback& callback) {
  if (!options.write) return generate_many(model, std::move(starts), generation, &tokenizer, callback);
  std::vector<GenerateResult<Branch>> results;
  for (auto& start : starts) {
    results.push_back(options.write(model, std::move(start), generation, tokenizer, callback));
  }
  return results;
}

}  // namespace

Answered answer_turns(const Model& model, const KnowledgeFile& file, const KvTree& tree,
                      std::span<const Turn> turns, const AskOptions& options, const TokenCallback& callback) {
  check_room(model, turns, options.max_new_tokens);
  const Transformer& transformer = model.transformer();
  const std::size_t vocabulary = model.config().vocab_size;
  const Stopwatch prefill_watch;
  std::vector<Extension> extensions;
  for (const Turn& turn : turns) extensions.push_back({turn.from, turn.ids});
  const std::vector<Branch> leaves = transformer.extend(tree, extensions);
  std::vector<float> logits(turns.size() * vocabulary);
  transformer.logits(leaves, logits);
  const double prefill = prefill_watch.seconds();

  std::vector<GenerateStart<Branch>> starts;
  for (std::size_t i = 0; i < turns.size(); ++i) {
    starts.push_back(
        {leaves[i], std::span<const float>(logits).subspan(i * vocabulary, vocabulary), turns[i].ids});
  }
  TreeStepModel step_model(transformer, tree);
  const GenerateOptions generation{.max_new_tokens = options.max_new_tokens,
                                   .min_new_tokens = 0,
                                   .stop_ids = model.config().eos_token_ids,
                                   .stop = options.stop,
                                   .sampling = options.sampling};
  const Stopwatch decode_watch;
  auto results = written(step_model, std::move(starts), generation, model.tokenizer(), options, callback);
  const double decode = decode_watch.seconds();

  Answered done;
  for (std::size_t i = 0; i < turns.size(); ++i) {
    auto& result = results[i];
    Answer answer{.text = std::move(result.text),
                  .citations = {},
                  .ids = std::move(result.ids),
                  .log_probabilities = std::move(result.log_probabilities),
                  .finish_reason = result.finish_reason,
                  .selected = {},
                  .cost = {.cached_tokens = turns[i].trunk.branch.size() - turns[i].trunk.computed,
                           .computed_tokens = turns[i].trunk.computed,
                           .question_tokens = turns[i].ids.size(),
                           .prefill_seconds = prefill,
                           .decode_seconds = decode}};
    answer.cost.new_tokens = answer.ids.size();
    support(model, file, tree, turns[i], options, answer);
    done.answers.push_back(std::move(answer));
    done.ends.push_back(std::move(result.state));
  }
  return done;
}

}  // namespace modicum::cag
