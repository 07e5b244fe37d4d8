// SPDX-License-Identifier: Apache-2.0
#include "draft.hpp"

#include <algorithm>
#include <system_error>

#include <modicum/base/atomic_file.hpp>
#include <modicum/base/error.hpp>
#include <modicum/base/hash.hpp>

namespace modicum::cag {
namespace {

SharedPrompt make_prompt(const Model& model, const Manifest& manifest, std::span<const Document> documents) {
  return manifest.layout == Layout::joint
             ? make_shared_prompt(model.tokenizer(), manifest.format, documents)
             : make_block_prompt(model.tokenizer(), manifest.format, documents, manifest.segment_tokens);
}

std::string shares_of(std::span<const Document> documents, const SharedPrompt& prompt) {
  std::string shares;
  for (std::size_t i = 0; i < documents.size() && i < 20; ++i) {
    const DocumentSpan& span = prompt.documents[i];
    shares +=
        (i == 0 ? "" : ", ") + documents[i].name + " " + std::to_string(span.token_end - span.token_begin);
  }
  if (documents.size() > 20) shares += ", and " + std::to_string(documents.size() - 20) + " more";
  return shares;
}

/// What must fit into the context at once: everything, or the instruction and the longest segment.
std::size_t least_tokens(const Manifest& manifest, const SharedPrompt& prompt) {
  if (!manifest.select) return prompt.ids.size();
  std::size_t instruction = 0, longest = 0;
  for (const PromptSegment& segment : prompt.segments) {
    auto& size = segment.document ? longest : instruction;
    size = std::max(size, segment.token_end - segment.token_begin);
  }
  return instruction + longest;
}

void check_context(const Model& model, const Draft& draft) {
  const auto& [documents, manifest, prompt] = draft;
  const std::size_t context = model.config().max_position_embeddings;
  if (least_tokens(manifest, prompt) + manifest.reserve <= context) return;
  fail<ContextOverflow>({.op = "cag.build",
                         .what = "documents",
                         .expected = "at most " + std::to_string(context) + " tokens with " +
                                     std::to_string(manifest.reserve) + " left for a question and its answer",
                         .got = std::to_string(prompt.ids.size()) + " (" + shares_of(documents, prompt) + ")",
                         .todo = manifest.select
                                     ? "choose a smaller segment_tokens"
                                     : "leave documents out, use a model with a longer context, or let "
                                       "each question choose (overflow = select, layout = blocks)"});
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

Manifest start_manifest(const Model& model, const BuildOptions& options) {
  if (options.overflow == Overflow::select && options.layout != Layout::blocks) {
    fail({.op = "cag.build",
          .what = "overflow",
          .expected = "'error' with the joint layout",
          .got = "'select'",
          .todo = "choose layout = blocks: a joint cache cannot leave documents out"});
  }
  if (options.layout == Layout::blocks && options.segment_tokens < 16) {
    fail({.op = "cag.build",
          .what = "segment_tokens",
          .expected = "at least 16",
          .got = std::to_string(options.segment_tokens)});
  }
  return {.fingerprint = model.fingerprint(),
          .model_type = model.config().model_type,
          .shape = model.transformer().kv_shape(),
          .kv_heads = model.config().num_key_value_heads,
          .hidden_size = model.config().hidden_size,
          .layout = options.layout,
          .encoding = options.kv.value_or(KvEncoding::wide),
          .automatic = !options.kv.has_value(),
          .reserve = options.reserve,
          .segment_tokens = options.layout == Layout::blocks ? options.segment_tokens : 0,
          .recompute = options.layout == Layout::blocks ? options.recompute : 0,
          .select = options.overflow == Overflow::select,
          .abstain_below = options.abstain_below,
          .format = options.format,
          .documents = {},
          .segments = {},
          .certificate = {.bound = options.max_kl, .tokens = 0, .measurements = {}}};
}

/// What the manifest says of documents and prompt.
void describe(Draft& draft) {
  auto& [documents, manifest, prompt] = draft;
  manifest.tokens = prompt.ids.size();
  manifest.resume_byte = prompt.resume_byte;
  manifest.resume_token = prompt.resume_token;
  manifest.documents.clear();
  for (std::size_t i = 0; i < documents.size(); ++i) {
    const Document& document = documents[i];
    manifest.documents.push_back({document.name, document.source, hash128_hex(document.text),
                                  prompt.documents[i], document.pages, document.converted,
                                  document.changes_often});
  }
}

}  // namespace

Draft make_draft(const Model& model, std::vector<Document> documents, Manifest manifest) {
  std::stable_partition(documents.begin(), documents.end(),
                        [](const Document& d) { return !d.changes_often; });
  SharedPrompt prompt = make_prompt(model, manifest, documents);
  return {std::move(documents), std::move(manifest), std::move(prompt)};
}

Draft make_draft(const Model& model, std::span<const Document> documents, const BuildOptions& options) {
  check_documents(documents);
  return make_draft(model, {documents.begin(), documents.end()}, start_manifest(model, options));
}

void check_possible(const Model& model, const Draft& draft, const std::filesystem::path& path) {
  check_context(model, draft);
  check_target(path, draft.prompt.ids.size() * draft.manifest.shape.token_bytes() + draft.prompt.text.size());
}

void write_draft(const std::filesystem::path& path, Draft& draft, const Reading& reading,
                 const std::optional<FileIdentity>& replaced) {
  describe(draft);
  draft.manifest.segments = reading.segments;
  write_reading(path, draft.manifest, draft.prompt, reading, replaced);
}

}  // namespace modicum::cag
