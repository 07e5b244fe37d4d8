// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>

#include <modicum/io/model_config.hpp>

#include "../base/json.hpp"
#include "../base/quote.hpp"
#include "low_rank_json.hpp"
#include "quantization_json.hpp"
#include "rope_config.hpp"

namespace modicum {
namespace {

constexpr std::string_view kOp = "config.parse";
constexpr std::uint64_t kMaxWidth = std::uint64_t{1} << 24;
constexpr std::uint64_t kMaxLayers = 100'000;
constexpr std::uint64_t kMaxTokens = (std::uint64_t{1} << 31) - 1;
constexpr std::uint64_t kMaxLength = std::uint64_t{1} << 40;

/// What a model type implies, and the defaults of its transformers configuration class.
struct Family {
  std::string_view model_type;
  std::uint64_t num_key_value_heads;  ///< 0: as many as attention heads
  std::uint64_t head_dim;             ///< 0: hidden_size / num_attention_heads
  std::uint64_t max_position_embeddings;
  std::optional<std::int32_t> bos_token_id;
  std::optional<std::int32_t> eos_token_id;
};

constexpr std::array kFamilies = std::to_array<Family>({
    {"llama", 0, 0, 2048, 1, 2},
    {"mistral", 8, 0, 131072, 1, 2},
    {"qwen2", 32, 0, 32768, {}, {}},
    {"qwen3", 32, 128, 32768, {}, {}},
});

const Family& family_of(const JsonFields& fields) {
  const std::string type = fields.text("model_type");
  for (const Family& family : kFamilies) {
    if (type == family.model_type) return family;
  }
  fields.refuse<Unsupported>("model_type", "llama, mistral, qwen2 or qwen3");
}

/// Fields whose meaning this version does not implement must not be skipped in silence.
void refuse_unsupported(const JsonFields& fields) {
  for (const char* field : {"compression_config", "num_experts", "num_local_experts", "n_routed_experts",
                            "moe_intermediate_size", "per_layer_config"}) {
    if (fields.has_value(field)) fields.refuse<Unsupported>(field, "a dense model without it");
  }
  const std::string activation = fields.text_or("hidden_act", "silu");
  if (activation != "silu" && activation != "swish") fields.refuse<Unsupported>("hidden_act", "silu");
}

void parse_sizes(const JsonFields& fields, const Family& family, ModelConfig& config) {
  config.hidden_size = fields.integer("hidden_size", 1, kMaxWidth);
  config.intermediate_size = fields.integer("intermediate_size", 1, kMaxWidth);
  config.num_hidden_layers = fields.integer("num_hidden_layers", 1, kMaxLayers);
  config.vocab_size = fields.integer("vocab_size", 1, kMaxTokens);
  config.max_position_embeddings =
      fields.integer_or("max_position_embeddings", family.max_position_embeddings, 1, kMaxLength);
  config.rms_norm_eps = fields.number_or("rms_norm_eps", 1e-6, 0, 1);
}

void parse_heads(const JsonFields& fields, const Family& family, ModelConfig& config) {
  const std::uint64_t heads = fields.integer("num_attention_heads", 1, kMaxWidth);
  config.num_attention_heads = heads;
  const bool explicit_null = fields.has("num_key_value_heads") && !fields.has_value("num_key_value_heads");
  const std::uint64_t fallback = family.num_key_value_heads == 0 ? heads : family.num_key_value_heads;
  config.num_key_value_heads =
      explicit_null ? heads : fields.integer_or("num_key_value_heads", fallback, 1, kMaxWidth);
  if (heads % config.num_key_value_heads != 0) {
    fields.refuse("num_key_value_heads", "a divisor of num_attention_heads = " + std::to_string(heads));
  }
  if (fields.has_value("head_dim")) {
    config.head_dim = fields.integer("head_dim", 1, kMaxWidth);
  } else if (family.head_dim != 0 && !fields.has("head_dim")) {
    config.head_dim = family.head_dim;
  } else if (config.hidden_size % heads == 0) {
    config.head_dim = config.hidden_size / heads;
  } else {
    fields.refuse("num_attention_heads", "a divisor of hidden_size = " + std::to_string(config.hidden_size));
  }
  if (config.head_dim % 2 != 0) {
    fields.refuse("head_dim", "an even number, for rotation",
                  "hidden_size / num_attention_heads counts if absent");
  }
}

void parse_biases(const JsonFields& fields, ModelConfig& config) {
  const bool attention_bias = fields.boolean_or("attention_bias", false);
  const bool mlp_bias = fields.boolean_or("mlp_bias", false);
  if (config.model_type == "llama" || config.model_type == "qwen3") {
    config.qkv_bias = config.o_bias = attention_bias;
  }
  if (config.model_type == "llama") config.mlp_bias = mlp_bias;
  if (config.model_type == "qwen2") config.qkv_bias = true;  // written in its code, not in config.json
  config.qk_norm = config.model_type == "qwen3";
}

std::size_t window(const JsonFields& fields) {
  return fields.integer_or("sliding_window", 4096, 1, kMaxLength);
}

/// One entry a layer of layer_types: true where it is "sliding_attention".
std::vector<bool> parse_layer_types(const JsonFields& fields, std::size_t layers) {
  const Json& types = fields.at("layer_types");
  if (!types.is_array() || types.size() != layers) {
    fields.refuse("layer_types", "an array of num_hidden_layers = " + std::to_string(layers) + " names");
  }
  std::vector<bool> sliding;
  for (const Json& type : types) {
    if (!type.is_string()) fields.refuse("layer_types", "an array of names");
    const auto& name = type.get_ref<const std::string&>();
    if (name != "full_attention" && name != "attention" && name != "sliding_attention") {
      fail<Unsupported>({.op = kOp,
                         .what = fields.name("layer_types"),
                         .expected = "full_attention or sliding_attention",
                         .got = quote(name)});
    }
    sliding.push_back(name == "sliding_attention");
  }
  return sliding;
}

/// Mistral: one window for all layers. Qwen: layers from max_window_layers on, or those that layer_types
/// names, and only with use_sliding_window. Llama: none.
void parse_sliding_window(const JsonFields& fields, ModelConfig& config) {
  const std::size_t layers = config.num_hidden_layers;
  config.sliding_window.assign(layers, 0);
  const bool disabled = fields.has("sliding_window") && !fields.has_value("sliding_window");
  if (config.model_type == "llama") return;
  if (config.model_type == "mistral") {
    if (fields.has_value("layer_types")) {
      fields.refuse<Unsupported>("layer_types", "none for mistral: sliding_window holds for all layers");
    }
    if (!disabled) config.sliding_window.assign(layers, window(fields));
    return;
  }
  const bool used = fields.boolean_or("use_sliding_window", false) && !disabled;
  std::vector<bool> sliding(layers, false);
  if (fields.has_value("layer_types")) {
    sliding = parse_layer_types(fields, layers);
    if (!used && std::find(sliding.begin(), sliding.end(), true) != sliding.end()) {
      fields.refuse("sliding_window", "a window in use, since layer_types has sliding_attention");
    }
  } else if (used) {
    const std::uint64_t first = fields.integer_or("max_window_layers", 28, 0, kMaxWidth);
    for (std::size_t i = 0; i < layers; ++i) sliding[i] = i >= first;
  }
  for (std::size_t i = 0; i < layers; ++i) {
    if (sliding[i]) config.sliding_window[i] = window(fields);
  }
}

std::int32_t token_id(const JsonFields& fields, const char* field, const Json& value) {
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() > kMaxTokens) {
    fields.refuse(field, "a token id or a list of them");
  }
  return static_cast<std::int32_t>(value.get<std::uint64_t>());
}

std::vector<std::int32_t> token_ids(const JsonFields& fields, const char* field) {
  const Json& value = fields.at(field);
  if (!value.is_array()) return {token_id(fields, field, value)};
  std::vector<std::int32_t> ids;
  for (const Json& id : value) ids.push_back(token_id(fields, field, id));
  return ids;
}

/// generation_config.json first, then config.json, then what the model type implies.
void parse_special_tokens(const JsonFields& fields, const JsonFields& generation, const Family& family,
                          ModelConfig& config) {
  for (const JsonFields* source : {&generation, &fields}) {
    if (config.eos_token_ids.empty() && source->has_value("eos_token_id")) {
      config.eos_token_ids = token_ids(*source, "eos_token_id");
    }
    if (!config.bos_token_id && source->has_value("bos_token_id")) {
      config.bos_token_id = token_id(*source, "bos_token_id", source->at("bos_token_id"));
    }
  }
  const auto absent = [&](const char* field) { return !fields.has(field) && !generation.has(field); };
  if (absent("eos_token_id") && family.eos_token_id) config.eos_token_ids = {*family.eos_token_id};
  if (absent("bos_token_id")) config.bos_token_id = family.bos_token_id;
}

/// What this package alone writes and reads.
void parse_modicum(const JsonFields& fields, ModelConfig& config) {
  const Json& section = fields.at("modicum");
  const JsonFields ours(section, kOp, fields.name("modicum."));
  for (const auto& [field, value] : section.items()) {
    if (field != "low_rank") ours.refuse<Unsupported>(field.c_str(), "low_rank only", "update modicum");
  }
  if (!ours.has_value("low_rank")) return;
  if (config.quantization) {
    ours.refuse<Unsupported>("low_rank", "none beside quantization_config");
  }
  config.low_rank = parse_low_rank(ours.at("low_rank"), kOp, ours.name("low_rank"));
}

}  // namespace

ModelConfig parse_model_config(std::string_view config_json, std::string_view generation_config_json) {
  const Json json = parse_json(config_json, kOp, "config.json");
  const JsonFields fields(json, kOp, "config.json: ");
  const Json generation_json = generation_config_json.empty()
                                   ? Json::object()
                                   : parse_json(generation_config_json, kOp, "generation_config.json");
  const JsonFields generation(generation_json, kOp, "generation_config.json: ");

  const Family& family = family_of(fields);
  refuse_unsupported(fields);
  ModelConfig config;
  config.model_type = family.model_type;
  parse_sizes(fields, family, config);
  parse_heads(fields, family, config);
  parse_biases(fields, config);
  config.tie_word_embeddings = fields.boolean_or("tie_word_embeddings", false);
  config.rope = parse_rope(fields, config.max_position_embeddings);
  parse_sliding_window(fields, config);
  for (const char* field : {"dtype", "torch_dtype"}) {
    if (config.dtype.empty() && fields.has_value(field)) config.dtype = fields.text(field);
  }
  if (fields.has_value("quantization_config")) {
    config.quantization =
        parse_quantization(fields.at("quantization_config"), kOp, fields.name("quantization_config"));
  }
  if (fields.has_value("modicum")) parse_modicum(fields, config);
  parse_special_tokens(fields, generation, family, config);
  return config;
}

}  // namespace modicum
