// SPDX-License-Identifier: Apache-2.0
#include <system_error>

#include <modicum/base/atomic_file.hpp>
#include <modicum/base/error.hpp>
#include <modicum/base/hash.hpp>
#include <modicum/cag/build.hpp>

namespace modicum::cag {
namespace {

void check_context(const Model& model, const BuildOptions& options, std::span<const Document> documents,
                   const SharedPrompt& prompt) {
  const std::size_t context = model.config().max_position_embeddings;
  if (prompt.ids.size() + options.reserve <= context) return;
  std::string shares;
  for (std::size_t i = 0; i < documents.size() && i < 20; ++i) {
    const DocumentSpan& span = prompt.documents[i];
    shares +=
        (i == 0 ? "" : ", ") + documents[i].name + " " + std::to_string(span.token_end - span.token_begin);
  }
  if (documents.size() > 20) shares += ", and " + std::to_string(documents.size() - 20) + " more";
  fail<ContextOverflow>({.op = "cag.build",
                         .what = "documents",
                         .expected = "at most " + std::to_string(context) + " tokens with " +
                                     std::to_string(options.reserve) + " left for a question and its answer",
                         .got = std::to_string(prompt.ids.size()) + " (" + shares + ")",
                         .todo = "leave documents out or use a model with a longer context"});
}

/// Before minutes of work: can the file be written at all?
void check_target(const std::filesystem::path& path, std::size_t bytes) {
  const AtomicFile probe(path, 0600);
  std::error_code error;
  const auto folder = path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
  const auto space = std::filesystem::space(folder, error);
  if (!error && space.available < bytes) {
    fail<IoError>({.op = "cag.build",
                   .what = "space for '" + path.string() + "'",
                   .expected = std::to_string(bytes) + " bytes",
                   .got = std::to_string(space.available),
                   .todo = "free some space"});
  }
}

Manifest describe(const Model& model, const BuildOptions& options, std::span<const Document> documents,
                  const SharedPrompt& prompt) {
  Manifest manifest{.fingerprint = model.fingerprint(),
                    .model_type = model.config().model_type,
                    .shape = model.transformer().kv_shape(),
                    .kv_heads = model.config().num_key_value_heads,
                    .tokens = prompt.ids.size(),
                    .hidden_size = model.config().hidden_size,
                    .resume_byte = prompt.resume_byte,
                    .resume_token = prompt.resume_token,
                    .format = options.format,
                    .documents = {}};
  for (std::size_t i = 0; i < documents.size(); ++i) {
    manifest.documents.push_back(
        {documents[i].name, documents[i].source, hash128_hex(documents[i].text), prompt.documents[i]});
  }
  return manifest;
}

}  // namespace

Knowledge build(const Model& model, std::span<const std::filesystem::path> sources,
                const std::filesystem::path& path, const BuildOptions& options, const Progress& progress) {
  const std::vector<Document> documents = read_documents(sources);
  const SharedPrompt prompt = make_shared_prompt(model.tokenizer(), options.format, documents);
  check_context(model, options, documents, prompt);
  const Transformer& transformer = model.transformer();
  check_target(path, prompt.ids.size() * transformer.kv_shape().token_bytes() + prompt.text.size());
  {
    const KvTree tree = transformer.tree();
    const Extension extension{tree.root(), prompt.ids};
    const Branch leaf = transformer.extend(tree, {&extension, 1}, nullptr, progress).front();
    write_knowledge(path, describe(model, options, documents, prompt), prompt, leaf);
  }
  return Knowledge::open(path, model);
}

}  // namespace modicum::cag
