// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <system_error>

#include <modicum/base/atomic_file.hpp>
#include <modicum/base/error.hpp>
#include <modicum/base/hash.hpp>
#include <modicum/cag/build.hpp>

#include "../base/stopwatch.hpp"
#include "journal.hpp"
#include "measure.hpp"
#include "reading.hpp"
#include "writing.hpp"

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

void check_context(const Model& model, const Manifest& manifest, std::span<const Document> documents,
                   const SharedPrompt& prompt) {
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

void describe_documents(Manifest& manifest, std::span<const Document> documents, const SharedPrompt& prompt) {
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

std::vector<Document> in_order(std::span<const Document> documents) {
  std::vector<Document> ordered(documents.begin(), documents.end());
  std::stable_partition(ordered.begin(), ordered.end(), [](const Document& d) { return !d.changes_often; });
  return ordered;
}

/// Measures forms of a cache on its own text.
class Assay {
 public:
  Assay(const Model& model, const KvTree& tree, const SharedPrompt& prompt, Manifest& manifest)
      : transformer_(model.transformer()), tree_(tree), prompt_(prompt), manifest_(manifest) {
    // As much as fits at once: segments from the first on.
    const std::size_t context = model.config().max_position_embeddings;
    std::size_t tokens = 0;
    for (const PromptSegment& segment : prompt.segments) {
      const std::size_t own = segment.token_end - segment.token_begin;
      if (tokens + own + std::min<std::size_t>(manifest.reserve, 33) > context) break;
      tokens += own;
      ++taken_;
    }
    spans_ = probe_spans(prompt, context - std::min(context, tokens));
    for (const auto& span : spans_) manifest.certificate.tokens += span.size();
  }

  bool possible() const { return !spans_.empty() && taken_ > 0; }

  Measurement measure(const Reading& reference, const Reading& candidate, std::string what,
                      std::string against) {
    Measurement m = compare(transformer_, tree_, trunk(reference), trunk(candidate), spans_);
    m.what = std::move(what);
    m.against = std::move(against);
    manifest_.certificate.measurements.push_back(m);
    return m;
  }

  /// Blocks beside one pass over the same text.
  void measure_blocks(const Reading& blocks) {
    if (taken_ != prompt_.segments.size()) return;  // one pass over all does not fit
    const Extension all{tree_.root(), prompt_.ids};
    const Branch joint = transformer_.extend(tree_, {&all, 1}).front();
    Measurement m = compare(transformer_, tree_, joint, trunk(blocks), spans_);
    m.what = "blocks";
    m.against = "joint";
    manifest_.certificate.measurements.push_back(m);
  }

 private:
  Branch trunk(const Reading& reading) const {
    std::vector<std::size_t> chosen;
    for (std::size_t i = 0; i < reading.segments.size(); ++i) {
      if (manifest_.layout == Layout::joint || i < taken_) chosen.push_back(i);
    }
    return compose(transformer_, tree_, prompt_.ids, reading.segments, reading.rows, chosen,
                   manifest_.recompute);
  }

  const Transformer& transformer_;
  const KvTree& tree_;
  const SharedPrompt& prompt_;
  Manifest& manifest_;
  std::size_t taken_ = 0;
  std::vector<std::vector<TokenId>> spans_;
};

/// The reading in the encoding that was asked for, or in the smallest that keeps to the bound. Measures and
/// certifies what is written.
Reading certify(const Model& model, const KvTree& tree, const SharedPrompt& prompt, const Reading& wide,
                Manifest& manifest) {
  manifest.certificate.tokens = 0;
  manifest.certificate.measurements.clear();
  Assay assay(model, tree, prompt, manifest);
  if (manifest.layout == Layout::blocks && assay.possible()) assay.measure_blocks(wide);
  if (!manifest.automatic && manifest.encoding == KvEncoding::wide) return wide;
  const std::vector<KvEncoding> tried =
      manifest.automatic ? std::vector{KvEncoding::int4, KvEncoding::int8} : std::vector{manifest.encoding};
  for (const KvEncoding encoding : tried) {
    if (encoding == KvEncoding::int4 && manifest.head_dim() % 2 != 0) continue;
    Reading coded = encode(wide, manifest, encoding);
    const double kl =
        assay.possible() ? assay.measure(wide, coded, std::string(name_of(encoding)), "wide").kl : 0;
    if (!manifest.automatic || (assay.possible() && kl <= manifest.certificate.bound)) {
      manifest.encoding = encoding;
      return coded;
    }
  }
  manifest.encoding = KvEncoding::wide;
  return wide;
}

void write_reading(const std::filesystem::path& path, Manifest& manifest, const SharedPrompt& prompt,
                   const Reading& reading, const std::optional<FileIdentity>& replaced) {
  manifest.segments = reading.segments;
  KnowledgeContent content{.manifest = manifest, .prompt = prompt, .hidden = reading.hidden, .rows = {}};
  for (const auto& rows : reading.rows) content.rows.push_back({run_of(*rows)});
  write_knowledge(path, content, replaced);
}

}  // namespace

Changes write_update(const Model& model, const std::filesystem::path& path, const KnowledgeFile& old,
                     std::span<const Document> documents, const Progress& progress) {
  Manifest manifest = old.manifest();
  manifest.version = kFormatVersion;
  manifest.fingerprint = model.fingerprint();
  const SharedPrompt prompt = make_prompt(model, manifest, documents);
  check_context(model, manifest, documents, prompt);
  check_target(path, prompt.ids.size() * manifest.shape.token_bytes() + prompt.text.size());
  const KvTree tree = model.transformer().tree();
  const Reading reading =
      read_prompt(model.transformer(), tree, prompt, manifest.layout, &old, nullptr, progress);
  describe_documents(manifest, documents, prompt);
  // In blocks, measuring would read everything again: new segments take the encoding of those that were kept,
  // and the certificate of the build stands.
  const bool keep = manifest.layout == Layout::blocks;
  write_reading(
      path, manifest, prompt,
      keep ? encode(reading, manifest, manifest.encoding) : certify(model, tree, prompt, reading, manifest),
      old.identity());
  return {.computed_tokens = reading.computed, .tokens = prompt.ids.size()};
}

Plan plan(const Model& model, std::span<const Document> documents, const BuildOptions& options) {
  check_documents(documents);
  const std::vector<Document> ordered = in_order(documents);
  const Manifest manifest = start_manifest(model, options);
  const SharedPrompt prompt = make_prompt(model, manifest, ordered);
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
    return static_cast<std::uint64_t>(bytes_per_token(manifest.shape, manifest.kv_heads, encoding) *
                                      static_cast<double>(plan.tokens)) +
           prompt.text.size() + 12 * plan.tokens;
  };
  plan.wide_bytes = bytes(KvEncoding::wide);
  plan.int8_bytes = bytes(KvEncoding::int8);
  plan.int4_bytes = bytes(KvEncoding::int4);
  // Products take time by the token, attention by the pairs of tokens.
  const ModelConfig& c = model.config();
  const double weights =
      static_cast<double>(c.num_hidden_layers) *
      static_cast<double>(2 * c.query_width() * c.hidden_size + 2 * c.kv_width() * c.hidden_size +
                          3 * c.hidden_size * c.intermediate_size);
  const auto work = [&](double tokens) {
    return tokens * weights +
           tokens * tokens * static_cast<double>(c.num_hidden_layers) * static_cast<double>(c.query_width());
  };
  const std::size_t sample = std::min<std::size_t>({256, plan.tokens, plan.context});
  const KvTree tree = model.transformer().tree();
  const Extension extension{tree.root(), std::span(prompt.ids).first(sample)};
  model.transformer().extend(tree, {&extension, 1});
  const Stopwatch watch;
  model.transformer().extend(tree, {&extension, 1});
  const double longest = options.layout == Layout::joint
                             ? static_cast<double>(plan.tokens)
                             : static_cast<double>(std::min(plan.tokens, options.segment_tokens));
  plan.seconds = watch.seconds() * work(longest) / work(static_cast<double>(sample)) *
                 (static_cast<double>(plan.tokens) / longest);
  return plan;
}

Knowledge build(const Model& model, std::span<const Document> documents, const std::filesystem::path& path,
                const BuildOptions& options, const Progress& progress) {
  check_documents(documents);
  const std::vector<Document> ordered = in_order(documents);
  Manifest manifest = start_manifest(model, options);
  const SharedPrompt prompt = make_prompt(model, manifest, ordered);
  check_context(model, manifest, ordered, prompt);
  check_target(path, prompt.ids.size() * manifest.shape.token_bytes() + prompt.text.size());
  {
    const KvTree tree = model.transformer().tree();
    Journal journal(model, manifest, path, options.journal_seconds);
    const std::optional<KnowledgeFile> begun = journal.find();
    const Reading wide = read_prompt(model.transformer(), tree, prompt, manifest.layout,
                                     begun ? &*begun : nullptr, &journal, progress);
    describe_documents(manifest, ordered, prompt);
    write_reading(path, manifest, prompt, certify(model, tree, prompt, wide, manifest), std::nullopt);
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
  check_documents(documents);
  if (options.layout != Layout::joint) {
    fail({.op = "cag.adopt", .what = "layout", .expected = "joint", .got = "blocks"});
  }
  const std::vector<Document> ordered = in_order(documents);
  Manifest manifest = start_manifest(model, options);
  const SharedPrompt prompt = make_prompt(model, manifest, ordered);
  check_context(model, manifest, ordered, prompt);
  if (segment == nullptr || segment->rows != prompt.ids.size() || segment->scales || segment->rotation != 0) {
    fail({.op = "cag.adopt",
          .what = "keys and values",
          .expected = "a wide row, rotated from position 0, for each of " +
                      std::to_string(prompt.ids.size()) + " tokens",
          .got = std::to_string(segment == nullptr ? 0 : segment->rows) + " rows"});
  }
  check_target(path, prompt.ids.size() * manifest.shape.token_bytes() + prompt.text.size());
  {
    // The last token is read here: the file needs the model's output at it.
    const KvTree tree = model.transformer().tree();
    const std::span<const TokenId> ids(prompt.ids);
    const Branch before =
        ids.size() > 1 ? tree.mount(tree.root(), ids.first(ids.size() - 1), segment) : tree.root();
    const Extension last{before, ids.last(1)};
    const Branch leaf = model.transformer().extend(tree, {&last, 1}).front();
    const Reading wide{.segments = {{.token_begin = 0, .token_end = ids.size(), .document = {}}},
                       .rows = {std::move(segment)},
                       .hidden = {leaf.hidden().begin(), leaf.hidden().end()},
                       .computed = 0};
    describe_documents(manifest, ordered, prompt);
    write_reading(path, manifest, prompt, certify(model, tree, prompt, wide, manifest), std::nullopt);
  }
  return Knowledge::open(path, model);
}

}  // namespace modicum::cag
