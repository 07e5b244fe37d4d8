// SPDX-License-Identifier: Apache-2.0
#include <chrono>

#include <modicum/base/error.hpp>
#include <modicum/cag/knowledge.hpp>
#include <modicum/decode/tree_step_model.hpp>

namespace modicum::cag {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void require_same(const std::filesystem::path& path, const std::string& what, const std::string& of_file,
                  const std::string& of_model) {
  if (of_file == of_model) return;
  fail<FingerprintMismatch>({.op = "cag.open",
                             .what = "'" + path.string() + "' belongs to another model: " + what,
                             .expected = of_model,
                             .got = of_file,
                             .todo = "open it with the model that built it, or build it again"});
}

void check_fingerprint(const std::filesystem::path& path, const Manifest& manifest, const Model& model) {
  // What is cheap to compare and telling comes first.
  require_same(path, "type", manifest.model_type, model.config().model_type);
  const KvShape shape = model.transformer().kv_shape();
  require_same(path, "layers", std::to_string(manifest.shape.layers), std::to_string(shape.layers));
  require_same(path, "width of keys", std::to_string(manifest.shape.width), std::to_string(shape.width));
  require_same(path, "key heads", std::to_string(manifest.kv_heads),
               std::to_string(model.config().num_key_value_heads));
  require_same(path, "hidden size", std::to_string(manifest.hidden_size),
               std::to_string(model.config().hidden_size));
  require_same(path, "dtype", manifest.fingerprint.dtype, std::string(name_of(shape.dtype)));
  require_same(path, "tokenizer", manifest.fingerprint.tokenizer, model.fingerprint().tokenizer);
  require_same(path, "weights", manifest.fingerprint.weights, model.fingerprint().weights);
}

}  // namespace

Knowledge Knowledge::open(const std::filesystem::path& path, const Model& model) {
  KnowledgeFile file = KnowledgeFile::open(path, model.transformer().pool());
  check_fingerprint(path, file.manifest(), model);
  for (const TokenId id : file.token_ids()) {
    if (id < 0 || static_cast<std::size_t>(id) >= model.config().vocab_size) {
      fail<FormatError>({.op = "cag.open",
                         .what = "'" + path.string() + "': token id",
                         .expected = "0 to " + std::to_string(model.config().vocab_size - 1),
                         .got = std::to_string(id)});
    }
  }
  const KvTree tree = model.transformer().tree();
  const Branch trunk = tree.mount(tree.root(), file.token_ids(), file.segment(), file.hidden());
  return Knowledge(std::make_shared<const State>(State{model, std::move(file), tree, trunk}));
}

std::vector<TokenId> Knowledge::question_ids(std::string_view question) const {
  const Manifest& manifest = file().manifest();
  return cag::question_ids(model().tokenizer(), manifest.format, file().prompt().substr(manifest.resume_byte),
                           manifest.resume_token == 0,
                           std::span(file().token_ids()).subspan(manifest.resume_token), question);
}

Answer Knowledge::ask(std::string_view question, const AskOptions& options,
                      const TokenCallback& callback) const {
  const std::vector<TokenId> ids = question_ids(question);
  const std::size_t cached = file().token_ids().size();
  const std::size_t total = cached + ids.size() + options.max_new_tokens;
  if (total > model().config().max_position_embeddings) {
    fail<ContextOverflow>(
        {.op = "cag.ask",
         .what = "context",
         .expected = "at most " + std::to_string(model().config().max_position_embeddings) + " tokens",
         .got = std::to_string(total) + " (documents " + std::to_string(cached) + ", question " +
                std::to_string(ids.size()) + ", answer up to " + std::to_string(options.max_new_tokens) + ")",
         .todo = "shorten the question, the documents or max_new_tokens"});
  }
  const Transformer& transformer = model().transformer();
  const auto start = std::chrono::steady_clock::now();
  const Extension extension{branch(), ids};
  const Branch leaf = transformer.extend(tree(), {&extension, 1}).front();
  std::vector<float> logits(model().config().vocab_size);
  transformer.logits({&leaf, 1}, logits);
  const double prefill = seconds_since(start);

  TreeStepModel step_model(transformer, tree());
  const GenerateOptions generation{.max_new_tokens = options.max_new_tokens,
                                   .min_new_tokens = 0,
                                   .stop_ids = model().config().eos_token_ids,
                                   .stop = options.stop,
                                   .sampling = options.sampling};
  const auto decode_start = std::chrono::steady_clock::now();
  auto result = generate(step_model, leaf, logits, ids, generation, &model().tokenizer(), callback);
  Answer answer{.text = std::move(result.text),
                .citations = {},
                .ids = std::move(result.ids),
                .log_probabilities = std::move(result.log_probabilities),
                .finish_reason = result.finish_reason,
                .cost = {.cached_tokens = cached,
                         .question_tokens = ids.size(),
                         .prefill_seconds = prefill,
                         .decode_seconds = seconds_since(decode_start)}};
  answer.cost.new_tokens = answer.ids.size();
  if (auto citation = cite(file().prompt(), file().manifest().documents, question, answer.text)) {
    answer.citations.push_back(std::move(*citation));
  }
  return answer;
}

}  // namespace modicum::cag
