// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include <modicum/base/error.hpp>
#include <modicum/cag/build.hpp>

#include "../base/stopwatch.hpp"
#include "draft.hpp"
#include "journal.hpp"
#include "measure.hpp"

namespace modicum::cag {
namespace {

/// Seconds that the model takes for the prompt, `longest` tokens at a time, extrapolated from its beginning.
double reading_seconds(const Model& model, const SharedPrompt& prompt, std::size_t longest) {
  const ModelConfig& c = model.config();
  const double weights =
      static_cast<double>(c.num_hidden_layers) *
      static_cast<double>(2 * c.query_width() * c.hidden_size + 2 * c.kv_width() * c.hidden_size +
                          3 * c.hidden_size * c.intermediate_size);
  // Products take time by the token, attention by the pairs of tokens.
  const auto work = [&](std::size_t count) {
    const auto tokens = static_cast<double>(count);
    return tokens * weights +
           tokens * tokens * static_cast<double>(c.num_hidden_layers) * static_cast<double>(c.query_width());
  };
  const std::size_t sample = std::min({std::size_t{256}, prompt.ids.size(), c.max_position_embeddings});
  const KvTree tree = model.transformer().tree();
  const Extension extension{tree.root(), std::span(prompt.ids).first(sample)};
  // The first pass brings the weights into memory.
  model.transformer().extend(tree, {&extension, 1});
  const Stopwatch watch;
  model.transformer().extend(tree, {&extension, 1});
  return watch.seconds() * work(longest) / work(sample) *
         (static_cast<double>(prompt.ids.size()) / static_cast<double>(longest));
}

void check_rows(const KvSegment* segment, std::size_t tokens) {
  if (segment != nullptr && segment->rows == tokens && !segment->scales && segment->rotation == 0) return;
  fail({.op = "cag.adopt",
        .what = "keys and values",
        .expected = "a wide row, rotated from position 0, for each of " + std::to_string(tokens) + " tokens",
        .got = std::to_string(segment == nullptr ? 0 : segment->rows) + " rows"});
}

/// All rows, and the model's output at the last token, which the file needs too: it is read here.
Reading adopted(const Model& model, const KvTree& tree, std::span<const TokenId> ids,
                std::shared_ptr<const KvSegment> segment) {
  const Branch before =
      ids.size() > 1 ? tree.mount(tree.root(), ids.first(ids.size() - 1), segment) : tree.root();
  const Extension last{before, ids.last(1)};
  const Branch leaf = model.transformer().extend(tree, {&last, 1}).front();
  return {.segments = {{.token_begin = 0, .token_end = ids.size(), .document = {}}},
          .rows = {std::move(segment)},
          .hidden = {leaf.hidden().begin(), leaf.hidden().end()},
          .computed = 0};
}

}  // namespace

Plan plan(const Model& model, std::span<const Document> documents, const BuildOptions& options) {
  const Draft draft = make_draft(model, documents, options);
  const auto& [ordered, manifest, prompt] = draft;
  Plan plan{.documents = {},
            .tokens = prompt.ids.size(),
            .context = model.config().max_position_embeddings,
            .reserve = options.reserve,
            .fits = prompt.ids.size() + options.reserve <= model.config().max_position_embeddings,
            .segments = prompt.segments.size()};
  for (std::size_t i = 0; i < ordered.size(); ++i) {
    const DocumentSpan& span = prompt.documents[i];
    plan.documents.push_back({ordered[i].name, span.token_end - span.token_begin});
  }
  const auto bytes = [&](KvEncoding encoding) {
    const double a_token = bytes_per_token(draft.manifest.shape, draft.manifest.kv_heads, encoding);
    return static_cast<std::uint64_t>(a_token * static_cast<double>(plan.tokens)) + draft.prompt.text.size() +
           12 * plan.tokens;
  };
  plan.wide_bytes = bytes(KvEncoding::wide);
  plan.int8_bytes = bytes(KvEncoding::int8);
  plan.int4_bytes = bytes(KvEncoding::int4);
  const bool joint = options.layout == Layout::joint;
  plan.seconds =
      reading_seconds(model, prompt, joint ? plan.tokens : std::min(plan.tokens, options.segment_tokens));
  return plan;
}

Knowledge build(const Model& model, std::span<const Document> documents, const std::filesystem::path& path,
                const BuildOptions& options, const Progress& progress) {
  Draft draft = make_draft(model, documents, options);
  check_possible(model, draft, path);
  {
    const KvTree tree = model.transformer().tree();
    Journal journal(model, draft.manifest, path, options.journal_seconds);
    const std::optional<KnowledgeFile> begun = journal.find();
    const Reading wide = read_prompt(model.transformer(), tree, draft.prompt, options.layout,
                                     begun ? &*begun : nullptr, &journal, progress);
    write_draft(path, draft, certify(model, tree, draft, wide));
    journal.remove();
  }
  return Knowledge::open(path, model);
}

Knowledge build(const Model& model, std::span<const std::filesystem::path> sources,
                const std::filesystem::path& path, const BuildOptions& options, const Progress& progress) {
  return build(model, read_documents(sources), path, options, progress);
}

Knowledge adopt(const Model& model, std::span<const Document> documents, const std::filesystem::path& path,
                std::shared_ptr<const KvSegment> segment, const BuildOptions& options) {
  if (options.layout != Layout::joint) {
    fail({.op = "cag.adopt", .what = "layout", .expected = "joint", .got = "blocks"});
  }
  Draft draft = make_draft(model, documents, options);
  check_possible(model, draft, path);
  check_rows(segment.get(), draft.prompt.ids.size());
  {
    const KvTree tree = model.transformer().tree();
    const Reading wide = adopted(model, tree, draft.prompt.ids, std::move(segment));
    write_draft(path, draft, certify(model, tree, draft, wide));
  }
  return Knowledge::open(path, model);
}

}  // namespace modicum::cag
