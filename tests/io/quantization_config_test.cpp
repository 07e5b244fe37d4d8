// SPDX-License-Identifier: Apache-2.0
#include <modicum/base/error.hpp>
#include <modicum/io/model_config.hpp>

#include "support/catch.hpp"

using namespace modicum;
using Catch::Matchers::Contains;

namespace {

constexpr std::string_view kWeights = R"("num_bits":4,"type":"int","strategy":"group","group_size":32)";

std::string scheme(std::string_view weights = kWeights, std::string_view more = {},
                   std::string_view targets = R"(["Linear"])") {
  return std::string(R"({"targets":)")
             .append(targets)
             .append(R"(,"weights":{)")
             .append(weights)
             .append("}")
             .append(more) +
         "}";
}

/// A config.json with this quantization_config; of equal keys the last counts.
ModelConfig parse(std::string_view groups, std::string_view fields = {}) {
  std::string text =
      R"({"model_type":"llama","hidden_size":64,"intermediate_size":128,"num_hidden_layers":4,)"
      R"("num_attention_heads":4,"vocab_size":300,"quantization_config":{"quant_method":"compressed-tensors",)"
      R"("format":"pack-quantized","quantization_status":"compressed","config_groups":{)";
  return parse_model_config(text.append(groups).append("}").append(fields).append("}}"));
}

ModelConfig parse_one(std::string_view one, std::string_view fields = {}) {
  return parse(std::string(R"("group_0":)").append(one), fields);
}

void refuses(const std::string& one, std::string_view fields, const std::string& text) {
  INFO(one << fields);
  CHECK_THROWS_AS(parse_one(one, fields), Unsupported);
  CHECK_THROWS_WITH(parse_one(one, fields), Contains("config.json: quantization_config.") && Contains(text));
}

void is_broken(const std::string& one, std::string_view fields, const std::string& text) {
  INFO(one << fields);
  CHECK_THROWS_AS(parse_one(one, fields), FormatError);
  CHECK_THROWS_WITH(parse_one(one, fields), Contains("config.json: quantization_config") && Contains(text));
}

/// Whether a configuration that ignores `pattern` ignores the layer called `name`.
bool matches(std::string_view pattern, std::string_view name) {
  std::string escaped;
  for (const char c : pattern) escaped.append(c == '\\' ? "\\\\" : std::string(1, c));
  return parse_one(scheme(), R"(,"ignore":["re:)" + escaped + "\"]").quantization->scheme_of(name) == nullptr;
}

}  // namespace

TEST_CASE("a scheme gives its bits, group and format, and what it leaves open takes the library's defaults") {
  const QuantizationConfig four = *parse_one(scheme()).quantization;
  REQUIRE(four.schemes.size() == 1);
  CHECK(four.schemes[0].bits == 4);
  CHECK(four.schemes[0].group == 32);
  CHECK(four.schemes[0].format == IntegerFormat::packed);
  CHECK(four.ignore.empty());

  const auto channel = parse_one(scheme(R"("strategy":"channel")"), R"(,"format":"int-quantized")");
  CHECK(channel.quantization->schemes[0].bits == 8);
  CHECK(channel.quantization->schemes[0].group == 0);
  CHECK(channel.quantization->schemes[0].format == IntegerFormat::plain);

  const auto inferred = parse_one(scheme(R"("num_bits":8,"group_size":128,"strategy":null)"));
  CHECK(inferred.quantization->schemes[0].group == 128);
  CHECK(parse_one(scheme(R"("group_size":-1)")).quantization->schemes[0].group == 0);
  const auto own =
      parse_one(scheme(kWeights, R"(,"format":"pack-quantized")"), R"(,"format":"mixed-precision")");
  CHECK(own.quantization->schemes[0].format == IntegerFormat::packed);
}

TEST_CASE("fields that change nothing are passed over") {
  const std::string fields =
      R"(,"ignore":null,"kv_cache_scheme":null,"sparsity_config":{},"transform_config":{},"version":"0.20.0",)"
      R"("global_compression_ratio":1.5,"quantization_status":"frozen")";
  const std::string weights =
      std::string(kWeights) +
      R"(,"symmetric":true,"dynamic":false,"block_structure":null,"observer":"mse","observer_kwargs":{"a":1},)"
      R"("actorder":"weight","zp_dtype":null,"scale_dtype":null)";
  const std::string activations =
      R"(,"output_activations":null,"input_activations":{"num_bits":8,"type":"int","strategy":"token",)"
      R"("dynamic":true,"symmetric":true})";
  CHECK(parse_one(scheme(weights, activations), fields).quantization->schemes.size() == 1);
  const std::string dense = R"(,"sparsity_config":{"format":"dense","global_sparsity":0.1,"targets":[]})";
  CHECK(parse_one(scheme(), dense).quantization->schemes.size() == 1);
}

TEST_CASE("an exact name goes before a pattern, that before Linear, and what is ignored before all") {
  const std::string groups =
      R"("group_0":)" + scheme() + R"(,"group_1":)" +
      scheme(R"("num_bits":8,"group_size":64)", "", R"(["re:.*down_proj"])") + R"(,"group_2":)" +
      scheme(R"("num_bits":8,"group_size":96)", "", R"(["model.layers.1.mlp.down_proj"])");
  const QuantizationConfig config =
      *parse(groups, R"(,"ignore":["lm_head","re:model\\.layers\\.3\\."])").quantization;
  const auto group = [&](std::string_view module) {
    const QuantizationScheme* found = config.scheme_of(module);
    return found == nullptr ? 0 : found->group;
  };
  CHECK(group("model.layers.0.mlp.up_proj") == 32);
  CHECK(group("model.layers.0.mlp.down_proj") == 64);
  CHECK(group("model.layers.1.mlp.down_proj") == 96);
  CHECK(group("model.layers.3.mlp.down_proj") == 0);
  CHECK(group("lm_head") == 0);
}

TEST_CASE("what is not implemented is refused by its field") {
  const auto weights = [](const char* more) { return scheme(std::string(kWeights) + "," + more); };
  refuses(scheme(), R"(,"quant_method":"gptq")", "quant_method: expected compressed-tensors, got \"gptq\"");
  refuses(scheme(), R"(,"format":"float-quantized")", "format");
  refuses(scheme(), R"(,"format":"marlin-24")", "pack-quantized or int-quantized");
  refuses(scheme(), R"(,"quantization_status":"initialized")", "quantization_status");
  refuses(scheme(), R"(,"kv_cache_scheme":{"num_bits":8})", "kv_cache_scheme");
  refuses(scheme(), R"(,"sparsity_config":{"format":"sparse-24"})", "sparsity_config.format");
  refuses(scheme(), R"(,"transform_config":{"config_groups":{"a":1}})", "transform_config");
  refuses(scheme(), R"j(,"ignore":["re:(a|b)"])j", "ignore");
  refuses("[\"Linear\"]", "", "group_0");
  refuses(weights(R"("num_bits":3)"), "", "weights.num_bits: expected 4 or 8, got 3");
  refuses(weights(R"("type":"float")"), "", "weights.type");
  refuses(weights(R"("symmetric":false)"), "", "weights.symmetric");
  refuses(weights(R"("strategy":"tensor","group_size":null)"), "", "weights.strategy");
  refuses(weights(R"("strategy":"block","block_structure":[1,32])"), "", "weights.block_structure");
  refuses(weights(R"("group_size":48)"), "", "weights.group_size: expected a multiple of 32, got 48");
  refuses(weights(R"("dynamic":true)"), "", "weights.dynamic");
  refuses(weights(R"("actorder":"group")"), "", "weights.actorder");
  refuses(scheme(kWeights), R"(,"format":"int-quantized")", "weights.num_bits: expected 8");
  refuses(scheme(kWeights, "", R"(["Embedding"])"), "", "targets");
  refuses(scheme(kWeights, R"(,"output_activations":{"num_bits":8})"), "", "output_activations");
  refuses(scheme(kWeights, R"(,"input_activations":{"num_bits":8,"dynamic":false})"), "", "dynamic");
  refuses(scheme(kWeights, R"(,"input_activations":{"type":"float","dynamic":true})"), "", "type");
  refuses(scheme(kWeights, R"(,"input_activations":{"num_bits":4,"dynamic":true})"), "", "num_bits");
  refuses(R"({"targets":["Linear"],"weights":null})", "", "weights");
}

TEST_CASE("ill-typed fields are a FormatError") {
  is_broken(scheme(), R"(,"ignore":3)", "ignore");
  is_broken(scheme(), R"(,"ignore":[3])", "ignore");
  is_broken(scheme(), R"(,"format":3)", "format");
  is_broken(scheme(), R"(,"config_groups":{})", "config_groups");
  is_broken(scheme(), R"(,"config_groups":[])", "config_groups");
  is_broken(scheme(kWeights, "", "[]"), "", "targets");
  is_broken(scheme(kWeights, "", "[1]"), "", "targets");
  is_broken(scheme(R"("num_bits":"4")"), "", "num_bits");
  is_broken(scheme(R"("group_size":0.5)"), "", "group_size");
  is_broken(R"({"targets":["Linear"],"weights":3})", "", "weights");
}

TEST_CASE("patterns match from the beginning of a name, as Python's re.match does") {
  CHECK(matches("", "lm_head"));
  CHECK(matches("lm", "lm_head"));
  CHECK_FALSE(matches("head", "lm_head"));
  CHECK(matches(".*head", "lm_head"));
  CHECK(matches(".*head$", "lm_head"));
  CHECK_FALSE(matches("lm$", "lm_head"));
  CHECK(matches("^lm_head$", "lm_head"));
  CHECK(matches(R"(model\.layers\.\d+\.mlp)", "model.layers.12.mlp.up_proj"));
  CHECK_FALSE(matches(R"(model\.layers\.\d+\.mlp)", "model.layers..mlp"));
  CHECK_FALSE(matches(R"(model\.layers)", "modelXlayers"));
  CHECK(matches("model.layers", "modelXlayers"));
  CHECK(matches("a+b?c*$", "aaccc"));
  CHECK_FALSE(matches("a+b?c*$", "bc"));
  CHECK(matches(".*$", ""));
  for (const char* pattern :
       {"(a)", "[a]", "a|b", "a{2}", "a**", "*", "a$b", R"(\w)", R"(\b)", "a\\", "$*"}) {
    INFO(pattern);
    CHECK_THROWS_AS(matches(pattern, "a"), Unsupported);
  }
}

TEST_CASE("a pattern that makes backtracking take for ever is matched at once") {
  std::string pattern;
  for (int i = 0; i < 200; ++i) pattern += "a*";
  CHECK_FALSE(matches(pattern + "b", std::string(2000, 'a')));
}
