// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <modicum/io/low_rank_config.hpp>
#include <modicum/io/quantization_config.hpp>

namespace modicum {

enum class RopeType { standard, linear, llama3, yarn };

/// Rotary position embedding as config.json describes it, in both spellings (`rope_theta` + `rope_scaling`,
/// and `rope_parameters`). Fields beyond `theta` matter to the types that use them, named as in transformers'
/// modeling_rope_utils.
struct RopeConfig {
  RopeType type = RopeType::standard;
  double theta = 10000.0;
  double factor = 1.0;                               ///< linear, llama3, yarn
  std::size_t original_max_position_embeddings = 0;  ///< llama3, yarn
  double low_freq_factor = 1.0;                      ///< llama3
  double high_freq_factor = 4.0;                     ///< llama3
  double beta_fast = 32.0;                           ///< yarn
  double beta_slow = 1.0;                            ///< yarn
  double attention_factor = 1.0;  ///< yarn: multiplies cos and sin (resolved from mscale etc.)
  bool truncate = true;           ///< yarn: round the correction range to integers
};

/// A decoder-only transformer of the Llama kind: Llama 2/3.x, SmolLM, Mistral, Qwen2/2.5, Qwen3.
struct ModelConfig {
  std::string model_type;  ///< "llama", "mistral", "qwen2", "qwen3"
  std::size_t hidden_size = 0;
  std::size_t intermediate_size = 0;
  std::size_t num_hidden_layers = 0;
  std::size_t num_attention_heads = 0;
  std::size_t num_key_value_heads = 0;
  std::size_t head_dim = 0;
  std::size_t vocab_size = 0;
  std::size_t max_position_embeddings = 0;
  double rms_norm_eps = 1e-6;
  bool qkv_bias = false;  ///< biases on q_proj, k_proj, v_proj
  bool o_bias = false;    ///< bias on o_proj
  bool mlp_bias = false;  ///< biases on gate_proj, up_proj, down_proj
  bool qk_norm = false;   ///< RMSNorm of each query and key head before RoPE (Qwen3)
  bool tie_word_embeddings = false;
  RopeConfig rope;
  /// Per layer: keys within this many positions are seen (a query sees itself and window − 1 before it); 0:
  /// all.
  std::vector<std::size_t> sliding_window;
  std::string dtype;                        ///< as written in config.json ("bfloat16", …), "" where absent
  std::vector<std::int32_t> eos_token_ids;  ///< generation_config.json first, else config.json
  std::optional<std::int32_t> bos_token_id;
  std::optional<QuantizationConfig> quantization;  ///< empty: all weights are floats
  std::optional<LowRankConfig> low_rank;           ///< empty: every linear layer is one matrix

  /// Width of all query heads together, and of all key (or value) heads together.
  std::size_t query_width() const noexcept { return num_attention_heads * head_dim; }
  std::size_t kv_width() const noexcept { return num_key_value_heads * head_dim; }
};

/// Parses config.json (and generation_config.json's text, empty where there is none). Throws `FormatError`
/// for broken JSON, a missing or ill-typed field and sizes that do not fit together, `Unsupported` for a
/// model type, activation, rope type or quantisation that is not implemented: each names the field.
ModelConfig parse_model_config(std::string_view config_json, std::string_view generation_config_json = {});

/// Inverse frequencies, head_dim / 2 of them, in f64 (transformers' ROPE_INIT_FUNCTIONS in closed form; the
/// factor that multiplies cos and sin is `rope.attention_factor`).
std::vector<double> rope_inverse_frequencies(const RopeConfig& rope, std::size_t head_dim);

}  // namespace modicum
