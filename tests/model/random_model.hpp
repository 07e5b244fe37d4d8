// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include <modicum/io/checkpoint.hpp>
#include <modicum/model/weights.hpp>

/// A config.json of a tiny model; `more` adds fields, as in `,"sliding_window":40`.
inline std::string tiny_config(const std::string& type, int layers, const std::string& more = "") {
  return R"({"model_type":")" + type +
         R"(","hidden_size":40,"intermediate_size":72,"num_attention_heads":4,)" +
         R"("num_key_value_heads":2,"vocab_size":97,"max_position_embeddings":400,"head_dim":20,"num_hidden_layers":)" +
         std::to_string(layers) + more + "}";
}

/// The tensors that a model of `config` has.
inline std::vector<modicum::TensorSpec> tensors_of(const modicum::ModelConfig& config,
                                                   const std::string& dtype) {
  std::vector<modicum::TensorSpec> specs;
  const auto add = [&](const std::string& name, std::size_t rows, std::size_t cols) {
    specs.push_back({name, dtype, {rows, cols}});
  };
  const auto vector = [&](const std::string& name, std::size_t size) {
    specs.push_back({name, dtype, {size}});
  };
  const auto linear = [&](const std::string& name, std::size_t rows, std::size_t cols, bool bias) {
    add(name + ".weight", rows, cols);
    if (bias) vector(name + ".bias", rows);
  };
  add("model.embed_tokens.weight", config.vocab_size, config.hidden_size);
  vector("model.norm.weight", config.hidden_size);
  if (!config.tie_word_embeddings) add("lm_head.weight", config.vocab_size, config.hidden_size);
  for (std::size_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    vector(prefix + "input_layernorm.weight", config.hidden_size);
    vector(prefix + "post_attention_layernorm.weight", config.hidden_size);
    if (config.qk_norm) {
      vector(prefix + "self_attn.q_norm.weight", config.head_dim);
      vector(prefix + "self_attn.k_norm.weight", config.head_dim);
    }
    linear(prefix + "self_attn.q_proj", config.query_width(), config.hidden_size, config.qkv_bias);
    linear(prefix + "self_attn.k_proj", config.kv_width(), config.hidden_size, config.qkv_bias);
    linear(prefix + "self_attn.v_proj", config.kv_width(), config.hidden_size, config.qkv_bias);
    linear(prefix + "self_attn.o_proj", config.hidden_size, config.query_width(), config.o_bias);
    linear(prefix + "mlp.gate_proj", config.intermediate_size, config.hidden_size, config.mlp_bias);
    linear(prefix + "mlp.up_proj", config.intermediate_size, config.hidden_size, config.mlp_bias);
    linear(prefix + "mlp.down_proj", config.hidden_size, config.intermediate_size, config.mlp_bias);
  }
  return specs;
}

/// Writes `specs` with random values, uniform in ±0.4; vectors of norms lie around 1.
inline void write_checkpoint(const std::filesystem::path& directory, const std::string& config_json,
                             const std::vector<modicum::TensorSpec>& specs, std::uint32_t seed = 1) {
  std::filesystem::create_directories(directory);
  std::ofstream(directory / "config.json") << config_json;
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(-0.4f, 0.4f);
  modicum::CheckpointWriter writer(directory, specs);
  for (const modicum::TensorSpec& spec : specs) {
    std::size_t count = 1;
    for (const auto extent : spec.shape) count *= extent;
    const float middle = spec.name.find("norm") != std::string::npos ? 1.0f : 0.0f;
    const auto append = [&](auto t) {
      std::vector<decltype(t)> values(count);
      for (auto& value : values) value = modicum::from_f32<decltype(t)>(middle + uniform(random));
      writer.append(std::as_bytes(std::span(values)));
    };
    if (spec.dtype == "BF16") {
      append(modicum::bf16{});
    } else if (spec.dtype == "F16") {
      append(modicum::f16{});
    } else {
      append(float{});
    }
  }
  writer.commit();
}

/// A checkpoint of `config_json` with random weights of `dtype` ("F32", "BF16", "F16").
inline modicum::Checkpoint random_checkpoint(const std::filesystem::path& directory,
                                             const std::string& config_json,
                                             const std::string& dtype = "F32") {
  write_checkpoint(directory, config_json, tensors_of(modicum::parse_model_config(config_json), dtype));
  return modicum::Checkpoint::open(directory);
}
