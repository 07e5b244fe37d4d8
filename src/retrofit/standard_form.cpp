// SPDX-License-Identifier: Apache-2.0
#include "standard_form.hpp"

#include <algorithm>
#include <charconv>
#include <set>

#include <modicum/base/error.hpp>

#include "../base/json.hpp"
#include "../base/quote.hpp"
#include "../base/text_file.hpp"
#include "layer_editor.hpp"

namespace modicum::retrofit {
namespace {

using OrderedJson = nlohmann::ordered_json;

enum class WindowForm { mistral, layer_types, qwen2_without_biases };

bool all_windowed(const ModelConfig& planned) {
  return std::all_of(planned.sliding_window.begin(), planned.sliding_window.end(),
                     [](std::size_t window) { return window != 0; });
}

WindowForm window_form(const ModelConfig& from, const ModelConfig& planned) {
  if (from.model_type == "qwen2" || from.model_type == "qwen3") return WindowForm::layer_types;
  if (from.o_bias || from.mlp_bias) {
    fail<Unsupported>({.op = "plan",
                       .what = "window",
                       .expected = "an architecture with windows",
                       .got = "a llama with biases, which no other one has"});
  }
  if (all_windowed(planned) && !from.qkv_bias) return WindowForm::mistral;
  return WindowForm::qwen2_without_biases;
}

/// Under another name, with what the source left to defaults that differ between architectures.
void rename_architecture(OrderedJson& config, const ModelConfig& from, const ModelConfig& planned,
                         const char* model_type, const char* architecture) {
  config["num_key_value_heads"] = planned.num_key_value_heads;
  config["head_dim"] = planned.head_dim;
  config["max_position_embeddings"] = planned.max_position_embeddings;
  if (!config.contains("bos_token_id") && from.bos_token_id) config["bos_token_id"] = *from.bos_token_id;
  if (!config.contains("eos_token_id") && !from.eos_token_ids.empty()) {
    config["eos_token_id"] = from.eos_token_ids;
  }
  config["model_type"] = model_type;
  config["architectures"] = {architecture};
  for (const char* const field : {"attention_bias", "mlp_bias", "pretraining_tp"}) config.erase(field);
}

void write_window(OrderedJson& config, const ModelConfig& from, const ModelConfig& planned,
                  std::size_t window) {
  config["sliding_window"] = window;
  const WindowForm form = window_form(from, planned);
  if (form == WindowForm::mistral) {
    if (from.model_type != "mistral")
      rename_architecture(config, from, planned, "mistral", "MistralForCausalLM");
    return;
  }
  if (form == WindowForm::qwen2_without_biases)
    rename_architecture(config, from, planned, "qwen2", "Qwen2ForCausalLM");
  config["use_sliding_window"] = true;
  config["head_dim"] = planned.head_dim;
  OrderedJson types = OrderedJson::array();
  for (const std::size_t w : planned.sliding_window) {
    types.push_back(w == 0 ? "full_attention" : "sliding_attention");
  }
  config["layer_types"] = std::move(types);
  // Older readers know this field alone: layers from it on have the window.
  const auto last_full =
      std::find(planned.sliding_window.rbegin(), planned.sliding_window.rend(), std::size_t{0});
  config["max_window_layers"] = planned.sliding_window.rend() - last_full;
}

/// Arrays with an entry a layer lose those of dropped layers.
void drop_layers(OrderedJson& config, const DepthEdit& edit, std::size_t layers) {
  config["num_hidden_layers"] = layers - edit.count;
  for (const char* const field : {"layer_types", "no_rope_layers"}) {
    if (!config.contains(field) || !config[field].is_array() || config[field].size() != layers) continue;
    const auto first = static_cast<std::ptrdiff_t>(edit.first);
    config[field].erase(config[field].begin() + first,
                        config[field].begin() + first + static_cast<std::ptrdiff_t>(edit.count));
  }
  if (config.contains("max_window_layers") && config["max_window_layers"].is_number_unsigned()) {
    const auto from = config["max_window_layers"].get<std::size_t>();
    const std::size_t before = from > edit.first ? std::min(from - edit.first, edit.count) : 0;
    config["max_window_layers"] = from - before;
  }
}

/// The scheme of every linear layer, by its name in the output.
void write_quantization(OrderedJson& config, const ModelConfig& from, const Plan& plan) {
  std::vector<QuantizedModule> modules = quantized_modules(from, plan);
  std::set<std::string> rounded;
  for (QuantizedModule& module : modules) {
    module.name = output_name(module.name, from, plan);
    rounded.insert(module.name);
  }
  std::vector<std::string> ignore;
  for (std::size_t layer = 0; layer < planned_config(from, plan).num_hidden_layers; ++layer) {
    for (const Linear linear : kLinears) {
      std::string name = "model.layers." + std::to_string(layer) + "." + std::string(module_of(linear));
      if (!rounded.contains(name)) ignore.push_back(std::move(name));
    }
  }
  if (plan.quantize->head_bits) {
    config["tie_word_embeddings"] = false;
    modules.push_back({"lm_head", *plan.quantize->head_bits, plan.quantize->group});
  } else {
    ignore.emplace_back("lm_head");
  }
  config["quantization_config"] = OrderedJson::parse(quantization_json(modules, std::move(ignore)));
}

}  // namespace

std::string standard_config(const Checkpoint& from, const Plan& plan) {
  OrderedJson config = OrderedJson::parse(read_text(from.directory() / "config.json"));
  const ModelConfig planned = planned_config(from.config(), plan);
  if (plan.ffn) config["intermediate_size"] = planned.intermediate_size;
  if (plan.kv) {
    config["num_key_value_heads"] = planned.num_key_value_heads;
    config["head_dim"] = planned.head_dim;
  }
  if (plan.depth) drop_layers(config, *plan.depth, from.config().num_hidden_layers);
  if (plan.window) write_window(config, from.config(), planned, plan.window->window);
  if (plan.low_rank) config["modicum"]["low_rank"]["modules"] = low_rank_modules(from.config(), plan);
  if (plan.quantize) write_quantization(config, from.config(), plan);
  return config.dump(2) + "\n";
}

std::vector<TensorSpec> zero_biases(const Checkpoint& from, const Plan& plan) {
  const ModelConfig planned = planned_config(from.config(), plan);
  std::vector<TensorSpec> specs;
  if (!plan.window || from.config().qkv_bias ||
      window_form(from.config(), planned) != WindowForm::qwen2_without_biases) {
    return specs;
  }
  for (std::size_t layer = 0; layer < planned.num_hidden_layers; ++layer) {
    const std::string module = "model.layers." + std::to_string(layer) + ".self_attn.";
    const std::string dtype = from.info("model.embed_tokens.weight").dtype;
    specs.push_back({module + "q_proj.bias", dtype, {planned.query_width()}});
    specs.push_back({module + "k_proj.bias", dtype, {planned.kv_width()}});
    specs.push_back({module + "v_proj.bias", dtype, {planned.kv_width()}});
  }
  return specs;
}

std::string output_name(const std::string& name, const ModelConfig& config, const Plan& plan) {
  static constexpr std::string_view kLayers = "model.layers.";
  if (!name.starts_with(kLayers)) return name;
  std::size_t layer = 0;
  const char* const end_of_name = name.data() + name.size();
  const auto [end, code] = std::from_chars(name.data() + kLayers.size(), end_of_name, layer);
  if (code != std::errc() || end == end_of_name || *end != '.') return name;
  const std::vector<std::size_t> kept = kept_layers(config, plan);
  const auto at = std::lower_bound(kept.begin(), kept.end(), layer);
  if (at == kept.end() || *at != layer) return {};
  return std::string(kLayers) + std::to_string(at - kept.begin()) + std::string(end, end_of_name);
}

std::vector<std::size_t> kept_layers(const ModelConfig& config, const Plan& plan) {
  std::vector<std::size_t> kept;
  for (std::size_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    const bool dropped =
        plan.depth && layer >= plan.depth->first && layer - plan.depth->first < plan.depth->count;
    if (!dropped) kept.push_back(layer);
  }
  return kept;
}

}  // namespace modicum::retrofit
