// SPDX-License-Identifier: Apache-2.0
#include <string>

#include <modicum/base/error.hpp>
#include <modicum/io/model_config.hpp>

#include "support/catch.hpp"

using namespace modicum;

namespace {

ModelConfig parse(const std::string& section, const std::string& more = "") {
  return parse_model_config(R"({"model_type":"llama","hidden_size":8,"intermediate_size":16,)"
                            R"("num_hidden_layers":2,"num_attention_heads":2,"vocab_size":10,"modicum":)" +
                            section + more + "}");
}

}  // namespace

TEST_CASE("layers of low rank are named, by a pattern too, and an exact name goes before it") {
  const ModelConfig config = parse(
      R"({"low_rank":{"modules":{"re:.*up_proj":5,"model.layers.0.mlp.up_proj":3,"re:.*layers\\.1.*":7}}})");
  REQUIRE(config.low_rank);
  CHECK(config.low_rank->rank_of("model.layers.0.mlp.up_proj") == 3);
  CHECK(config.low_rank->rank_of("model.layers.1.mlp.up_proj") == 7);
  CHECK(config.low_rank->rank_of("model.layers.2.mlp.up_proj") == 5);
  CHECK(config.low_rank->rank_of("model.layers.1.mlp.down_proj") == 7);
  CHECK(config.low_rank->rank_of("model.layers.0.mlp.down_proj") == 0);
}

TEST_CASE("a section of modicum that names no layers means none") {
  CHECK_FALSE(parse("{}").low_rank);
  CHECK_FALSE(parse("null").low_rank);
}

TEST_CASE("a section that is not understood is refused by its field") {
  const auto refused = [](const std::string& section, const std::string& field) {
    CHECK_THROWS_AS(parse(section), FormatError);
    CHECK_THROWS_WITH(parse(section), Catch::Contains(field));
  };
  refused("3", "modicum");
  refused(R"({"low_rank":[]})", "modicum.low_rank");
  refused(R"({"low_rank":{}})", "modicum.low_rank.modules");
  refused(R"({"low_rank":{"modules":{}}})", "modicum.low_rank.modules");
  refused(R"({"low_rank":{"modules":["model.layers.0.mlp.up_proj"]}})", "modicum.low_rank.modules");
  refused(R"({"low_rank":{"modules":{"a.b":0}}})", "modicum.low_rank.modules.a.b");
  refused(R"({"low_rank":{"modules":{"a.b":"8"}}})", "modicum.low_rank.modules.a.b");
  refused(R"({"low_rank":{"modules":{"a.b":8},"bits":4}})", "modicum.low_rank.bits");
  CHECK_THROWS_AS(parse(R"({"sparse":{}})"), Unsupported);
  CHECK_THROWS_AS(parse(R"({"low_rank":{"modules":{"re:a|b":8}}})"), Unsupported);
  const std::string quantised =
      R"(,"quantization_config":{"quant_method":"compressed-tensors","format":"pack-quantized",)"
      R"("config_groups":{"g":{"targets":["Linear"],"weights":{"num_bits":8,"type":"int","symmetric":true,)"
      R"("strategy":"group","group_size":32}}}})";
  CHECK(parse("{}", quantised).quantization);
  CHECK_THROWS_AS(parse(R"({"low_rank":{"modules":{"a.b":8}}})", quantised), Unsupported);
}
