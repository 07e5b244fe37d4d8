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
#include "../io/checkpoint_layout.hpp"
#include "packed_linear.hpp"
#include "student_layer.hpp"

namespace modicum::retrofit {
namespace {

constexpr std::string_view kOp = "quantize";
constexpr const char* kEmbedding = "model.embed_tokens.weight";

void check_options(const QuantizeOptions& options) {
  check_layout(kOp, "linear layers", options.bits, options.group);
  if (options.head_bits) check_layout(kOp, "the head", *options.head_bits, options.group);
}

/// The linear layers of each decoder layer by the name of their tensor.
std::map<std::string, QuantizeStep, std::less<>> linear_layers(const ModelConfig& config) {
  std::map<std::string, QuantizeStep, std::less<>> layers;
  for (std::size_t i = 0; i < config.num_hidden_layers; ++i) {
    for (const Linear linear : kLinears) {
      const std::string module = "model.layers." + std::to_string(i) + "." + std::string(module_of(linear));
      const std::string source = module + ".weight";
      const auto [rows, cols] = shape_of(config, linear);
      layers[source] = {.source = source,
                        .module = module,
                        .kind = module.substr(module.rfind('.') + 1),
                        .rows = rows,
                        .cols = cols};
    }
  }
  return layers;
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
  return packed_specs({step.module, step.bits, group}, step.rows, step.cols, info.dtype);
}

std::string quantized_config(const Checkpoint& from, const QuantizePlan& plan,
                             const QuantizeOptions& options) {
  const MappedFile file(from.directory() / "config.json");
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  nlohmann::ordered_json config = nlohmann::ordered_json::parse(text);
  std::vector<std::string> ignore = plan.kept;
  if (options.head_bits) {
    config["tie_word_embeddings"] = false;
  } else {
    ignore.push_back("lm_head");
  }
  std::vector<QuantizedModule> modules;
  for (const QuantizeStep& step : plan.steps) {
    if (step.bits != 0) modules.push_back({step.module, step.bits, options.group});
  }
  config["quantization_config"] =
      nlohmann::ordered_json::parse(quantization_json(modules, std::move(ignore)));
  return config.dump(2) + "\n";
}

}  // namespace modicum::retrofit
