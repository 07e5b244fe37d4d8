// SPDX-License-Identifier: Apache-2.0
#include "quantize_plan.hpp"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include <modicum/base/error.hpp>
#include <modicum/base/mapped_file.hpp>
#include <modicum/model/weights.hpp>

#include "../base/json.hpp"
#include "../base/quote.hpp"

namespace modicum::retrofit {
namespace {

constexpr std::string_view kOp = "quantize";
constexpr const char* kEmbedding = "model.embed_tokens.weight";
/// The release whose layout of config.json and tensors is written.
constexpr const char* kCompressedTensors = "0.20.0";

void check_bits(const char* option, std::size_t bits) {
  if (bits == 4 || bits == 8) return;
  fail({.op = kOp, .what = option, .expected = "4 or 8", .got = std::to_string(bits)});
}

void check_options(const QuantizeOptions& options) {
  check_bits("bits", options.bits);
  if (options.head_bits) check_bits("bits of the head", *options.head_bits);
  const bool by_rows = options.group == 0 && options.bits == 8 && options.head_bits.value_or(8) == 8;
  if (!by_rows && (options.group == 0 || options.group % kQuantGroup != 0)) {
    fail({.op = kOp,
          .what = "group",
          .expected = "a multiple of " + std::to_string(kQuantGroup) + ", or whole rows with 8 bits",
          .got = std::to_string(options.group)});
  }
}

/// The linear layers of each decoder layer by the name of their tensor.
std::map<std::string, QuantizeStep, std::less<>> linear_layers(const ModelConfig& config) {
  struct Shape {
    const char* block;
    const char* kind;
    std::size_t rows, cols;
  };
  const std::size_t hidden = config.hidden_size;
  const Shape shapes[] = {{"self_attn", "q_proj", config.query_width(), hidden},
                          {"self_attn", "k_proj", config.kv_width(), hidden},
                          {"self_attn", "v_proj", config.kv_width(), hidden},
                          {"self_attn", "o_proj", hidden, config.query_width()},
                          {"mlp", "gate_proj", config.intermediate_size, hidden},
                          {"mlp", "up_proj", config.intermediate_size, hidden},
                          {"mlp", "down_proj", hidden, config.intermediate_size}};
  std::map<std::string, QuantizeStep, std::less<>> layers;
  for (std::size_t i = 0; i < config.num_hidden_layers; ++i) {
    for (const Shape& shape : shapes) {
      const std::string module = "model.layers." + std::to_string(i) + "." + shape.block + "." + shape.kind;
      const std::string source = module + ".weight";
      layers[source] = {
          .source = source, .module = module, .kind = shape.kind, .rows = shape.rows, .cols = shape.cols};
    }
  }
  return layers;
}

/// Names of all tensors in the order of their bytes, file after file.
std::vector<std::string> stored_order(const Checkpoint& from) {
  std::vector<std::string> order;
  for (const SafetensorsFile& file : from.files()) {
    std::vector<std::pair<std::uint64_t, std::string>> names;
    for (const auto& [name, info] : file.header().tensors) {
      const bool used = from.contains(name) && from.bytes(name).data() == file.bytes(name).data();
      if (used) names.emplace_back(info.begin, name);
    }
    std::sort(names.begin(), names.end());
    for (auto& [begin, name] : names) order.push_back(std::move(name));
  }
  return order;
}

QuantizeStep head_step(const Checkpoint& from, std::size_t bits) {
  const ModelConfig& config = from.config();
  return {.source = config.tie_word_embeddings ? kEmbedding : "lm_head.weight",
          .module = "lm_head",
          .kind = "head",
          .bits = bits,
          .rows = config.vocab_size,
          .cols = config.hidden_size};
}

/// Whether rows of so many columns are whole groups.
bool fits(std::size_t cols, const QuantizeOptions& options) {
  return cols % (options.group == 0 ? kQuantGroup : options.group) == 0;
}

void check_head(const Checkpoint& from, const QuantizeOptions& options) {
  if (!options.head_bits || fits(from.config().hidden_size, options)) return;
  fail<Unsupported>(
      {.op = kOp,
       .what = "head with " + std::to_string(from.config().hidden_size) + " inputs",
       .expected = "a multiple of the group of " + std::to_string(options.group) + " (rows: of 32)",
       .got = "one that is not",
       .todo = "keep the head, or take a smaller group"});
}

Json scheme_json(std::vector<std::string> targets, std::size_t bits, std::size_t group) {
  if (group == 0) {
    const Json integers = {{"num_bits", 8}, {"type", "int"}, {"symmetric", true}};
    Json weights = integers, activations = integers;
    weights.update({{"strategy", "channel"}, {"dynamic", false}});
    activations.update({{"strategy", "token"}, {"dynamic", true}});
    return {{"targets", std::move(targets)},
            {"weights", weights},
            {"input_activations", activations},
            {"output_activations", nullptr},
            {"format", "int-quantized"}};
  }
  const Json weights = {{"num_bits", bits},    {"type", "int"},    {"symmetric", true},
                        {"strategy", "group"}, {"dynamic", false}, {"group_size", group}};
  return {{"targets", std::move(targets)},
          {"weights", weights},
          {"input_activations", nullptr},
          {"output_activations", nullptr},
          {"format", "pack-quantized"}};
}

}  // namespace

QuantizePlan make_plan(const Checkpoint& from, const QuantizeOptions& options) {
  check_options(options);
  if (from.config().quantization) {
    fail<Unsupported>({.op = kOp,
                       .what = quote(from.directory().string()),
                       .expected = "a model in floats",
                       .got = "one that is quantised already",
                       .todo = "start from the model that it was made of"});
  }
  if (from.config().low_rank) {
    fail<Unsupported>({.op = kOp,
                       .what = quote(from.directory().string()),
                       .expected = "linear layers of one matrix each",
                       .got = "layers of low rank",
                       .todo = "start from the model that it was made of"});
  }
  ModelWeights::load(from);  // every tensor is there and has its shape
  check_head(from, options);
  const auto layers = linear_layers(from.config());
  QuantizePlan plan;
  std::size_t quantised = 0;
  for (const std::string& name : stored_order(from)) {
    const auto layer = layers.find(name);
    if (layer != layers.end()) {
      QuantizeStep step = layer->second;
      const bool whole = fits(step.cols, options);
      step.bits = whole ? options.bits : 0;
      quantised += whole ? 1 : 0;
      if (!whole) plan.kept.push_back(step.module);
      plan.steps.push_back(std::move(step));
    } else if (name == "lm_head.weight") {
      // A stored copy of a tied head gives way to the integers, which come from the embedding.
      if (!options.head_bits) plan.steps.push_back({.source = name, .kind = "head"});
    } else {
      plan.steps.push_back({.source = name, .kind = name == kEmbedding ? "embedding" : "others"});
    }
    if (options.head_bits && name == head_step(from, 0).source) {
      plan.steps.push_back(head_step(from, *options.head_bits));
    }
  }
  if (quantised == 0 && !options.head_bits) {
    fail<Unsupported>({.op = kOp,
                       .what = "linear layers of " + quote(from.directory().string()),
                       .expected = "inputs in multiples of the group of " + std::to_string(options.group),
                       .got = "none with such",
                       .todo = "take a smaller group"});
  }
  return plan;
}

std::vector<TensorSpec> outputs_of(const QuantizeStep& step, const Checkpoint& from, std::size_t group) {
  const TensorInfo& info = from.info(step.source);
  if (step.bits == 0) return {{step.source, info.dtype, info.shape}};
  if (group == 0) {
    return {{step.module + ".weight", "I8", {step.rows, step.cols}},
            {step.module + ".weight_scale", info.dtype, {step.rows, 1}}};
  }
  return {{step.module + ".weight_packed", "I32", {step.rows, step.cols * step.bits / 32}},
          {step.module + ".weight_scale", info.dtype, {step.rows, step.cols / group}},
          {step.module + ".weight_shape", "I64", {2}}};
}

std::string quantized_config(const Checkpoint& from, const QuantizePlan& plan,
                             const QuantizeOptions& options) {
  const MappedFile file(from.directory() / "config.json");
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  nlohmann::ordered_json config = nlohmann::ordered_json::parse(text);
  std::vector<std::string> ignore = plan.kept;
  Json groups = {{"group_0", scheme_json({"Linear"}, options.bits, options.group)}};
  if (!options.head_bits) {
    ignore.push_back("lm_head");
  } else {
    config["tie_word_embeddings"] = false;
    if (*options.head_bits != options.bits) {
      groups["group_1"] = scheme_json({"lm_head"}, *options.head_bits, options.group);
    }
  }
  config["quantization_config"] = {{"quant_method", "compressed-tensors"},
                                   {"version", kCompressedTensors},
                                   {"format", options.group == 0 ? "int-quantized" : "pack-quantized"},
                                   {"quantization_status", "compressed"},
                                   {"config_groups", groups},
                                   {"ignore", ignore},
                                   {"kv_cache_scheme", nullptr},
                                   {"global_compression_ratio", nullptr}};
  return config.dump(2) + "\n";
}

}  // namespace modicum::retrofit
