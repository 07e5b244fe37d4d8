// SPDX-License-Identifier: Apache-2.0
#include "merge_inputs.hpp"

#include <algorithm>
#include <cstdint>
#include <functional>
#include <set>
#include <sstream>
#include <string_view>
#include <utility>

#include <modicum/base/error.hpp>
#include <modicum/base/hash.hpp>

#include "../base/quote.hpp"
#include "../base/text_file.hpp"
#include "../io/checkpoint_layout.hpp"
#include "../io/checkpoint_state.hpp"

namespace modicum::tune {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kOp = "merge";

/// Buffers of older versions of transformers, which follow from the configuration.
bool is_derived(const std::string& name) {
  return name.ends_with(".rotary_emb.inv_freq");
}

Checkpoint open_model(const std::string& path) {
  const fs::path directory(path);
  if (is_there(directory / "adapter_config.json") && !is_there(directory / "config.json")) {
    fail({.op = kOp,
          .what = quote(path),
          .expected = "a model",
          .got = "an adapter",
          .todo = "give it as the adapter of its model"});
  }
  Checkpoint checkpoint = Checkpoint::open(directory);
  const bool integers = checkpoint.config().quantization.has_value();
  if (integers || checkpoint.config().low_rank) {
    fail<Unsupported>({.op = kOp,
                       .what = quote(path),
                       .expected = "linear layers of one matrix of floats each",
                       .got = integers ? "integers" : "layers of low rank",
                       .todo = "start from the model that it was made of"});
  }
  return checkpoint;
}

std::string text_of(double value) {
  std::ostringstream out;
  out << value;
  return out.str();
}

std::string rope_text(const RopeConfig& rope) {
  std::ostringstream out;
  out << "type " << static_cast<int>(rope.type) << ", theta " << rope.theta << ", factor " << rope.factor
      << ", " << rope.original_max_position_embeddings << ", " << rope.low_freq_factor << ", "
      << rope.high_freq_factor << ", " << rope.beta_fast << ", " << rope.beta_slow << ", "
      << rope.attention_factor << ", " << rope.truncate;
  return out.str();
}

std::string windows_text(const ModelConfig& config) {
  std::string text;
  for (const std::size_t window : config.sliding_window) text += std::to_string(window) + " ";
  return text;
}

/// What two models must have alike for differences of their weights to mean anything.
struct ConfigField {
  const char* name;
  std::function<std::string(const ModelConfig&)> of;
};
const std::vector<ConfigField>& config_fields() {
  using C = const ModelConfig&;
  static const std::vector<ConfigField> kFields = {
      {"model_type", [](C c) { return c.model_type; }},
      {"hidden_size", [](C c) { return std::to_string(c.hidden_size); }},
      {"intermediate_size", [](C c) { return std::to_string(c.intermediate_size); }},
      {"num_hidden_layers", [](C c) { return std::to_string(c.num_hidden_layers); }},
      {"num_attention_heads", [](C c) { return std::to_string(c.num_attention_heads); }},
      {"num_key_value_heads", [](C c) { return std::to_string(c.num_key_value_heads); }},
      {"head_dim", [](C c) { return std::to_string(c.head_dim); }},
      {"rms_norm_eps", [](C c) { return text_of(c.rms_norm_eps); }},
      {"attention biases",
       [](C c) { return std::string(c.qkv_bias ? "q, k, v" : "") + (c.o_bias ? " o" : ""); }},
      {"mlp_bias", [](C c) { return std::string(c.mlp_bias ? "true" : "false"); }},
      {"rotary embedding", [](C c) { return rope_text(c.rope); }},
      {"sliding windows", [](C c) { return windows_text(c); }}};
  return kFields;
}

}  // namespace

bool is_vocabulary_tensor(const std::string& name) {
  return name == kEmbedding || name == kHead;
}

std::string Source::stored_name(const std::string& tensor) const {
  return tensor == kHead && checkpoint.config().tie_word_embeddings ? kEmbedding : tensor;
}

MergeInputs::MergeInputs(const MergePlan& plan) {
  check_merge_plan(plan);
  if (!plan.base.empty()) base_ = add(plan.base, plan.base_adapter);
  for (const MergeInput& input : plan.models) models_.push_back(add(input.model, input.adapter));
  if (!plan.onto.empty()) {
    foundation_ = add(plan.onto, plan.onto == plan.base ? plan.base_adapter : "");
  } else {
    foundation_ = base_ != kNone ? base_ : models_.front();
  }
  tokenizer_ = plan.tokenizer.empty() ? foundation_ : find(plan.tokenizer, "tokenizer");
  chat_ = plan.chat.empty() ? tokenizer_ : find(plan.chat, "chat");
  check_shapes();
  plan_head(plan);
  plan_rows(plan);
  plan_specs(plan);
  check_tensors();
}

std::size_t MergeInputs::add(const std::string& path, const std::string& adapter) {
  for (std::size_t i = 0; i < sources_.size(); ++i) {
    const std::string known = sources_[i].adapter ? sources_[i].adapter->directory().string() : "";
    if (sources_[i].path == path && known == adapter) return i;
  }
  Source source{.path = path, .checkpoint = open_model(path)};
  if (!adapter.empty()) {
    source.adapter = Adapter::open(adapter);
    source.adapter->check(source.checkpoint);
  }
  if (is_there(fs::path(path) / "tokenizer.json"))
    source.tokenizer_fingerprint = Tokenizer::fingerprint_of(path);
  sources_.push_back(std::move(source));
  return sources_.size() - 1;
}

std::size_t MergeInputs::find(const std::string& path, const char* field) {
  for (std::size_t i = 0; i < sources_.size(); ++i) {
    if (sources_[i].path == path) return i;
  }
  std::string all;
  for (const Source& source : sources_) all += (all.empty() ? "" : ", ") + quote(source.path);
  fail({.op = kOp, .what = field, .expected = "one of the plan's models: " + all, .got = quote(path)});
}

void MergeInputs::check_shapes() const {
  const Source& first = sources_[foundation_];
  for (const Source& other : sources_) {
    for (const ConfigField& field : config_fields()) {
      const std::string expected = field.of(first.checkpoint.config()),
                        got = field.of(other.checkpoint.config());
      if (expected == got) continue;
      fail({.op = kOp,
            .what = std::string(field.name) + " of " + quote(other.path),
            .expected = expected + ", as " + quote(first.path) + " has",
            .got = got,
            .todo = "merge models that were made from one another"});
    }
  }
}

void MergeInputs::plan_head(const MergePlan& plan) {
  tied_ = sources_[foundation_].checkpoint.config().tie_word_embeddings;
  for (const Source& source : sources_) {
    if (source.adapter && source.checkpoint.config().tie_word_embeddings && source.adapter->updates(kHead)) {
      fail<Unsupported>({.op = kOp,
                         .what = "adapter " + quote(source.adapter->directory().string()),
                         .expected = "no update of a head that is tied to the embedding",
                         .got = "one"});
    }
    if (!tied_ || source.checkpoint.config().tie_word_embeddings) continue;
    if (!plan.untie) {
      fail({.op = kOp,
            .what = "output head of " + quote(source.path),
            .expected = "one that is tied to the embedding, as in " + quote(sources_[foundation_].path),
            .got = "a head of its own",
            .todo = "ask for a head of its own in the result: untie"});
    }
  }
  if (plan.untie) {
    tied_ = std::all_of(sources_.begin(), sources_.end(),
                        [](const Source& s) { return s.checkpoint.config().tie_word_embeddings; });
  }
}

void MergeInputs::plan_rows(const MergePlan& plan) {
  const std::string& one = sources_.front().tokenizer_fingerprint;
  const bool one_file = std::all_of(sources_.begin(), sources_.end(), [&](const Source& s) {
    return !one.empty() && s.tokenizer_fingerprint == one &&
           s.checkpoint.config().vocab_size == sources_.front().checkpoint.config().vocab_size;
  });
  rows_.rows = sources_[tokenizer_].checkpoint.config().vocab_size;
  if (one_file) return;
  std::vector<RowsOf> models;
  for (Source& source : sources_) {
    source.vocabulary = Vocabulary::read(source.path);
    rows_.unchecked = rows_.unchecked || !source.vocabulary;
  }
  for (const Source& source : sources_) {
    models.push_back({.name = source.path,
                      .vocabulary = source.vocabulary ? &*source.vocabulary : nullptr,
                      .rows = source.checkpoint.config().vocab_size,
                      .fingerprint = source.tokenizer_fingerprint});
  }
  const std::string differs = difference(models);
  if (differs.empty()) return;
  if (plan.vocabulary == VocabularyRule::same) {
    fail({.op = kOp,
          .what = "vocabularies",
          .expected = "the same tokens in the same rows of all models",
          .got = differs,
          .todo = "say how they are to be matched: vocabulary \"match\" or \"all\""});
  }
  rows_ = match_rows(models, tokenizer_, plan.vocabulary == VocabularyRule::all, plan.tokens);
}

void MergeInputs::plan_specs(const MergePlan& plan) {
  const Checkpoint& like = sources_[foundation_].checkpoint;
  const auto add_spec = [&](const std::string& name, const std::string& stored) {
    const TensorInfo& info = like.info(stored);
    static const std::pair<const char*, DType> kDtypes[] = {
        {"F32", DType::f32}, {"BF16", DType::bf16}, {"F16", DType::f16}};
    const auto known = std::ranges::find_if(kDtypes, [&](const auto& d) { return info.dtype == d.first; });
    if (known == std::end(kDtypes)) {
      fail<Unsupported>({.op = kOp,
                         .what = "tensor " + quote(name) + " of " + quote(like.directory().string()),
                         .expected = "F32, BF16 or F16",
                         .got = info.dtype});
    }
    TensorSpec spec{name, info.dtype, info.shape};
    if (plan.dtype) {
      spec.dtype =
          std::ranges::find_if(kDtypes, [&](const auto& d) { return d.second == *plan.dtype; })->first;
    }
    if (is_vocabulary_tensor(name)) spec.shape[0] = rows_.rows;
    specs_.push_back(std::move(spec));
  };
  for (const std::string& name : stored_order(like)) {
    if (is_derived(name) || (name == kHead && like.config().tie_word_embeddings)) continue;
    add_spec(name, name);
  }
  if (!tied_ && like.config().tie_word_embeddings) add_spec(kHead, kEmbedding);
  // So that each tensor begins at a multiple of its element's size, whatever sizes come before it.
  std::stable_partition(specs_.begin(), specs_.end(), [](const TensorSpec& spec) {
    std::uint64_t bytes = spec.dtype == "F32" ? 4 : 2;
    for (const std::uint64_t extent : spec.shape) bytes *= extent;
    return bytes % kTensorAlignment == 0;
  });
}

void MergeInputs::check_tensors() const {
  std::set<std::string_view> known;
  for (const TensorSpec& spec : specs_) known.insert(spec.name);
  for (const Source& source : sources_) {
    const Checkpoint& from = source.checkpoint;
    for (const TensorSpec& spec : specs_) {
      const std::string stored = source.stored_name(spec.name);
      if (!from.contains(stored)) {
        fail<FormatError>(
            {.op = kOp,
             .what = quote(source.path),
             .expected = "a tensor " + quote(stored) + ", as " + quote(sources_[foundation_].path) + " has",
             .got = "none of that name"});
      }
      std::vector<std::uint64_t> shape = spec.shape;
      if (is_vocabulary_tensor(spec.name)) shape[0] = from.config().vocab_size;
      if (from.info(stored).shape != shape || shape.empty() || shape.size() > 2) {
        fail<FormatError>({.op = kOp,
                           .what = "tensor " + quote(stored) + " of " + quote(source.path),
                           .expected = shape_text(shape),
                           .got = shape_text(from.info(stored).shape)});
      }
    }
    for (const std::string& name : from.names()) {
      const bool tied = name == kHead && from.config().tie_word_embeddings;
      if (known.contains(name) || tied || is_derived(name)) continue;
      fail<FormatError>({.op = kOp,
                         .what = "tensor " + quote(name) + " of " + quote(source.path),
                         .expected = "one that " + quote(sources_[foundation_].path) + " has too",
                         .got = "one that it does not have"});
    }
  }
}

std::string MergeInputs::identity() const {
  std::ostringstream out;
  const auto add_file = [&](const fs::path& path) {
    const FileIdentity file = FileIdentity::of(path);
    out << path.string() << " " << file.device << " " << file.inode << " " << file.size << " "
        << file.modified_ns << " " << file.changed_ns << "\n";
  };
  for (const Source& source : sources_) {
    for (const SafetensorsFile& file : source.checkpoint.files()) add_file(file.file().path());
    for (const char* const name : {"config.json", "generation_config.json", "tokenizer.json",
                                   "tokenizer_config.json", "chat_template.jinja"}) {
      add_file(fs::path(source.path) / name);
    }
    if (!source.adapter) continue;
    add_file(source.adapter->weights());
    add_file(source.adapter->directory() / "adapter_config.json");
  }
  return out.str();
}

}  // namespace modicum::tune
