// SPDX-License-Identifier: Apache-2.0
#include <modicum/base/error.hpp>
#include <modicum/io/model_config.hpp>

#include "support/catch.hpp"

using namespace modicum;
using Catch::Matchers::Contains;

namespace {

/// A small config.json of `model_type` with `fields` added; of equal keys the last counts.
std::string config_json(std::string_view model_type, std::string_view fields = {}) {
  std::string text = R"({"model_type":")" + std::string(model_type);
  text += R"(","hidden_size":64,"intermediate_size":128,"num_hidden_layers":4,"num_attention_heads":4,)";
  text += R"("num_key_value_heads":2,"vocab_size":300)";
  if (!fields.empty()) text.append(",").append(fields);
  return text + "}";
}

ModelConfig parse(std::string_view model_type, std::string_view fields = {},
                  std::string_view generation = {}) {
  return parse_model_config(config_json(model_type, fields), generation);
}

template <class E>
void refuses(std::string_view model_type, std::string_view fields, const std::string& text) {
  INFO(fields);
  CHECK_THROWS_AS(parse(model_type, fields), E);
  CHECK_THROWS_WITH(parse(model_type, fields), Contains(text) && Contains("config.json"));
}

using Windows = std::vector<std::size_t>;

}  // namespace

TEST_CASE("a Llama config gives its sizes and the defaults of its class") {
  const ModelConfig config = parse("llama");
  CHECK(config.model_type == "llama");
  CHECK(config.hidden_size == 64);
  CHECK(config.intermediate_size == 128);
  CHECK(config.num_hidden_layers == 4);
  CHECK(config.num_attention_heads == 4);
  CHECK(config.num_key_value_heads == 2);
  CHECK(config.head_dim == 16);
  CHECK(config.query_width() == 64);
  CHECK(config.kv_width() == 32);
  CHECK(config.vocab_size == 300);
  CHECK(config.max_position_embeddings == 2048);
  CHECK(config.rms_norm_eps == 1e-6);
  CHECK_FALSE(config.tie_word_embeddings);
  CHECK(config.rope.type == RopeType::standard);
  CHECK(config.rope.theta == 10000);
  CHECK(config.sliding_window == Windows{0, 0, 0, 0});
  CHECK(config.eos_token_ids == std::vector<std::int32_t>{2});
  CHECK(config.bos_token_id == 1);
  CHECK(config.dtype.empty());
}

TEST_CASE("absent and null numbers of key-value heads mean what each class makes of them") {
  const auto heads = [](std::string_view type, const std::string& fields) {
    return parse_model_config(
               R"({"model_type":")" + std::string(type) +
               R"(","hidden_size":64,"intermediate_size":8,"num_hidden_layers":1,"vocab_size":9,)" + fields +
               "}")
        .num_key_value_heads;
  };
  CHECK(heads("llama", R"("num_attention_heads":16)") == 16);
  CHECK(heads("mistral", R"("num_attention_heads":16)") == 8);
  CHECK(heads("qwen2", R"("num_attention_heads":32)") == 32);
  CHECK(heads("mistral", R"("num_attention_heads":16,"num_key_value_heads":null)") == 16);
  CHECK(heads("qwen3", R"("num_attention_heads":16,"num_key_value_heads":null)") == 16);
}

TEST_CASE("head_dim may be explicit, null or the class's own") {
  CHECK(parse("llama", R"("head_dim":32)").head_dim == 32);
  CHECK(parse("mistral", R"("head_dim":32)").query_width() == 128);
  CHECK(parse("llama", R"("head_dim":null)").head_dim == 16);
  CHECK(parse("qwen2").head_dim == 16);
  CHECK(parse("qwen3").head_dim == 128);
  CHECK(parse("qwen3", R"("head_dim":null)").head_dim == 16);
  CHECK(parse("llama", R"("hidden_size":66,"head_dim":16)").head_dim == 16);
}

TEST_CASE("biases and norms of queries and keys follow the model type") {
  const ModelConfig llama = parse("llama", R"("attention_bias":true,"mlp_bias":true)");
  CHECK((llama.qkv_bias && llama.o_bias && llama.mlp_bias && !llama.qk_norm));
  const ModelConfig mistral = parse("mistral");
  CHECK_FALSE((mistral.qkv_bias || mistral.o_bias || mistral.mlp_bias || mistral.qk_norm));
  const ModelConfig qwen2 = parse("qwen2");
  CHECK((qwen2.qkv_bias && !qwen2.o_bias && !qwen2.mlp_bias && !qwen2.qk_norm));
  const ModelConfig qwen3 = parse("qwen3");
  CHECK((!qwen3.qkv_bias && !qwen3.o_bias && qwen3.qk_norm));
  CHECK(parse("qwen3", R"("attention_bias":true)").o_bias);
}

TEST_CASE("Mistral's sliding window holds for all layers unless it is null") {
  CHECK(parse("mistral").sliding_window == Windows(4, 4096));
  CHECK(parse("mistral", R"("sliding_window":16)").sliding_window == Windows(4, 16));
  CHECK(parse("mistral", R"("sliding_window":null)").sliding_window == Windows(4, 0));
  refuses<Unsupported>("mistral", R"("layer_types":["full_attention"])", "layer_types");
}

TEST_CASE("Qwen's sliding window holds where it is used, from max_window_layers on or as layer_types says") {
  CHECK(parse("qwen2", R"("sliding_window":16)").sliding_window == Windows(4, 0));
  CHECK(parse("qwen2", R"("sliding_window":16,"use_sliding_window":true)").sliding_window == Windows(4, 0));
  CHECK(parse("qwen2", R"("sliding_window":16,"use_sliding_window":true,"max_window_layers":1)")
            .sliding_window == Windows{0, 16, 16, 16});
  CHECK(parse("qwen3", R"("sliding_window":null,"use_sliding_window":true,"max_window_layers":1)")
            .sliding_window == Windows(4, 0));
  const std::string types =
      R"("layer_types":["sliding_attention","full_attention","attention","sliding_attention"])";
  CHECK(parse("qwen3", types + R"(,"use_sliding_window":true,"sliding_window":8)").sliding_window ==
        Windows{8, 0, 0, 8});
  refuses<FormatError>("qwen3", types, "sliding_window");
  refuses<FormatError>("qwen3", R"("layer_types":["full_attention"])", "an array of num_hidden_layers = 4");
  refuses<FormatError>("qwen3", R"("layer_types":[1,2,3,4])", "layer_types");
  refuses<Unsupported>("qwen3",
                       R"("layer_types":["linear_attention","full_attention","attention","attention"])",
                       "linear_attention");
  refuses<FormatError>("qwen2", R"("use_sliding_window":true,"max_window_layers":0,"sliding_window":0)",
                       "sliding_window");
}

TEST_CASE("eos and bos come from generation_config.json first, then config.json, then the class") {
  using Ids = std::vector<std::int32_t>;
  CHECK(parse("llama", R"("eos_token_id":5)").eos_token_ids == Ids{5});
  CHECK(parse("llama", R"("eos_token_id":[5,6])").eos_token_ids == Ids{5, 6});
  CHECK(parse("llama", R"("eos_token_id":5)", R"({"eos_token_id":[7,8],"bos_token_id":9})").eos_token_ids ==
        Ids{7, 8});
  CHECK(parse("llama", R"("bos_token_id":5)", R"({"bos_token_id":9})").bos_token_id == 9);
  CHECK(parse("llama", R"("eos_token_id":5)", "{}").eos_token_ids == Ids{5});
  CHECK(parse("llama", R"("eos_token_id":null)").eos_token_ids.empty());
  CHECK(parse("qwen2").eos_token_ids.empty());
  CHECK_FALSE(parse("qwen2").bos_token_id.has_value());
  refuses<FormatError>("llama", R"("eos_token_id":-1)", "eos_token_id");
  refuses<FormatError>("llama", R"("eos_token_id":[1,"x"])", "eos_token_id");
  CHECK_THROWS_WITH(parse("llama", "", R"({"eos_token_id":1.5})"),
                    Contains("generation_config.json: eos_token_id"));
  CHECK_THROWS_AS(parse("llama", "", "{"), FormatError);
}

TEST_CASE("dtype is read in both spellings") {
  CHECK(parse("llama", R"("torch_dtype":"bfloat16")").dtype == "bfloat16");
  CHECK(parse("llama", R"("torch_dtype":"bfloat16","dtype":"float32")").dtype == "float32");
  CHECK(parse("llama", R"("dtype":null)").dtype.empty());
}

TEST_CASE("a config that is no JSON object is a FormatError") {
  for (const char* text : {"", "x", "[]", "1", "{", "{}{}", "{\"model_type\":\"llama\",}"}) {
    CHECK_THROWS_AS(parse_model_config(text), FormatError);
  }
  CHECK_THROWS_AS(parse_model_config(std::string_view("{}\0{}", 5)), FormatError);
  CHECK_THROWS_WITH(parse_model_config(std::string(1'000'000, '[')), Contains("nested at most"));
}

TEST_CASE("a size that is missing, ill-typed or absurd is a FormatError that names the field") {
  CHECK_THROWS_WITH(parse_model_config(R"({"model_type":"llama"})"),
                    Contains("hidden_size: expected a value"));
  refuses<FormatError>("llama", R"("hidden_size":0)",
                       "hidden_size: expected an integer from 1 to 16777216, got 0");
  refuses<FormatError>("llama", R"("hidden_size":-64)", "got -64");
  refuses<FormatError>("llama", R"("hidden_size":64.0)", "got 64.0");
  refuses<FormatError>("llama", R"("hidden_size":"64")", "got \"64\"");
  refuses<FormatError>("llama", R"("hidden_size":null)", "got null");
  refuses<FormatError>("llama", R"("intermediate_size":1e30)", "intermediate_size");
  refuses<FormatError>("llama", R"("num_hidden_layers":1000000000)", "num_hidden_layers");
  refuses<FormatError>("llama", R"("vocab_size":99999999999)", "vocab_size");
  refuses<FormatError>("llama", R"("vocab_size":18446744073709551616)", "vocab_size");
  refuses<FormatError>("llama", R"("max_position_embeddings":0)", "max_position_embeddings");
  refuses<FormatError>("llama", R"("rms_norm_eps":-1)", "rms_norm_eps");
  refuses<FormatError>("llama", R"("rms_norm_eps":"small")", "rms_norm_eps");
  refuses<FormatError>("llama", R"("tie_word_embeddings":1)", "tie_word_embeddings");
  refuses<FormatError>("llama", R"("attention_bias":"yes")", "attention_bias");
  refuses<FormatError>("llama", R"("dtype":16)", "dtype");
}

TEST_CASE("heads that do not fit together are a FormatError") {
  refuses<FormatError>("llama", R"("num_key_value_heads":3)", "a divisor of num_attention_heads = 4, got 3");
  refuses<FormatError>("llama", R"("num_key_value_heads":8)", "num_key_value_heads");
  refuses<FormatError>("llama", R"("num_attention_heads":3,"num_key_value_heads":3)",
                       "a divisor of hidden_size = 64");
  refuses<FormatError>("llama", R"("head_dim":15)", "an even number");
  refuses<FormatError>("llama", R"("head_dim":0)", "head_dim");
  refuses<FormatError>("llama", R"("hidden_size":12)", "an even number");
}

TEST_CASE("what this version does not implement is Unsupported and named") {
  refuses<Unsupported>("gemma2", "", "model_type: expected llama, mistral, qwen2 or qwen3, got \"gemma2\"");
  refuses<Unsupported>("llama", R"("hidden_act":"gelu")", "hidden_act");
  CHECK(parse("llama", R"("hidden_act":"swish")").hidden_size == 64);
  refuses<Unsupported>("llama", R"("quantization_config":{"quant_method":"awq"})", "quantization_config");
  CHECK(parse("llama", R"("quantization_config":null)").hidden_size == 64);
  refuses<Unsupported>("qwen3", R"("num_experts":8)", "num_experts");
  refuses<Unsupported>("mistral", R"("num_local_experts":8)", "num_local_experts");
  refuses<Unsupported>("llama", R"("partial_rotary_factor":0.5)", "partial_rotary_factor");
  CHECK(parse("llama", R"("partial_rotary_factor":1.0)").hidden_size == 64);
  CHECK_THROWS_AS(parse_model_config("{}"), FormatError);
}
