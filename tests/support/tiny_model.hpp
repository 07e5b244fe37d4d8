// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include <modicum/io/checkpoint.hpp>

#include "support/byte_tokenizer.hpp"

/// Writes a Llama of two layers with random f32 weights and a byte tokenizer (vocabulary 258) into
/// `directory`.
inline void write_tiny_model(const std::filesystem::path& directory, std::uint32_t seed = 1,
                             int context = 512) {
  std::filesystem::create_directories(directory);
  std::ofstream(directory / "config.json")
      << R"({"model_type":"llama","hidden_size":32,"intermediate_size":48,"num_hidden_layers":2,)"
      << R"("num_attention_heads":4,"num_key_value_heads":2,"vocab_size":258,"eos_token_id":256,)"
      << R"("tie_word_embeddings":true,"max_position_embeddings":)" << context << "}";
  std::ofstream(directory / "tokenizer.json") << byte_tokenizer_json();
  std::vector<modicum::TensorSpec> specs{{"model.embed_tokens.weight", "F32", {258, 32}},
                                         {"model.norm.weight", "F32", {32}}};
  for (int layer = 0; layer < 2; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    specs.push_back({prefix + "input_layernorm.weight", "F32", {32}});
    specs.push_back({prefix + "post_attention_layernorm.weight", "F32", {32}});
    specs.push_back({prefix + "self_attn.q_proj.weight", "F32", {32, 32}});
    specs.push_back({prefix + "self_attn.k_proj.weight", "F32", {16, 32}});
    specs.push_back({prefix + "self_attn.v_proj.weight", "F32", {16, 32}});
    specs.push_back({prefix + "self_attn.o_proj.weight", "F32", {32, 32}});
    specs.push_back({prefix + "mlp.gate_proj.weight", "F32", {48, 32}});
    specs.push_back({prefix + "mlp.up_proj.weight", "F32", {48, 32}});
    specs.push_back({prefix + "mlp.down_proj.weight", "F32", {32, 48}});
  }
  std::mt19937 random(seed);
  modicum::CheckpointWriter writer(directory, specs);
  for (const modicum::TensorSpec& spec : specs) {
    std::size_t count = 1;
    for (const auto extent : spec.shape) count *= extent;
    std::vector<float> values(count);
    // Uniform in ±0.4 around 0, norms around 1: large enough that wrong keys change the logits visibly.
    for (float& value : values) {
      value = static_cast<float>(random() % 8001) / 10000.0f - 0.4f + (spec.shape.size() == 1 ? 1.0f : 0.0f);
    }
    writer.append(std::as_bytes(std::span(values)));
  }
  writer.commit();
}
