// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include <modicum/base/error.hpp>
#include <modicum/model/weights.hpp>

#include "base/temporary_directory.hpp"
#include "model/random_model.hpp"
#include "support/catch.hpp"

using namespace modicum;

namespace {

const std::string kConfig = tiny_config("qwen2", 2, R"(,"tie_word_embeddings":false)");

std::vector<TensorSpec> specs() {
  return tensors_of(parse_model_config(kConfig), "F32");
}

}  // namespace

TEST_CASE("weights are used where they lie in the mapped file") {
  const TemporaryDirectory directory;
  const Checkpoint checkpoint = random_checkpoint(directory.path(), kConfig, "BF16");
  const ModelWeights weights = ModelWeights::load(checkpoint);
  REQUIRE(weights.dtype == DType::bf16);
  REQUIRE(weights.layers.size() == 2);
  REQUIRE(weights.embedding.data == checkpoint.bytes("model.embed_tokens.weight").data());
  REQUIRE(weights.layers[1].down.weight.data ==
          checkpoint.bytes("model.layers.1.mlp.down_proj.weight").data());
  REQUIRE(weights.layers[0].q.bias.size() == 80);
  REQUIRE(weights.layers[0].o.bias.empty());
}

TEST_CASE("another dtype is made by rounding each weight, and tied heads are one matrix") {
  const TemporaryDirectory directory;
  const Checkpoint checkpoint =
      random_checkpoint(directory.path(), tiny_config("llama", 1, R"(,"tie_word_embeddings":true)"));
  const ModelWeights weights = ModelWeights::load(checkpoint, DType::bf16);
  REQUIRE(weights.head.data == weights.embedding.data);
  const auto* stored =
      reinterpret_cast<const float*>(checkpoint.bytes("model.layers.0.mlp.up_proj.weight").data());
  const auto* converted = static_cast<const bf16*>(weights.layers[0].up.weight.data);
  for (std::size_t i = 0; i < 72 * 40; ++i) REQUIRE(converted[i].bits == to_bf16(stored[i]).bits);
}

TEST_CASE("a missing tensor, one of another shape, and one too many are refused by name") {
  const TemporaryDirectory directory;
  const auto load = [&](const std::string& name, const std::vector<TensorSpec>& list) {
    write_checkpoint(directory / name, kConfig, list);
    return ModelWeights::load(Checkpoint::open(directory / name));
  };
  for (std::size_t i = 0; i < specs().size(); i += 5) {
    auto list = specs();
    const std::string name = list[i].name;
    list.erase(list.begin() + static_cast<std::ptrdiff_t>(i));
    REQUIRE_THROWS_AS(load("missing" + std::to_string(i), list), FormatError);
    REQUIRE_THROWS_WITH(ModelWeights::load(Checkpoint::open(directory / ("missing" + std::to_string(i)))),
                        Catch::Contains(name));
  }
  auto more = specs();
  more.push_back({"model.layers.2.mlp.gate_proj.weight", "F32", {72, 40}});
  REQUIRE_THROWS_WITH(load("more", more), Catch::Contains("model.layers.2.mlp.gate_proj.weight"));
  auto biased = specs();
  biased.push_back({"model.layers.0.self_attn.o_proj.bias", "F32", {40}});
  REQUIRE_THROWS_WITH(load("biased", biased), Catch::Contains("o_proj.bias"));
  auto narrow = specs();
  std::find_if(narrow.begin(), narrow.end(), [](const auto& s) {
    return s.name == "model.layers.1.mlp.up_proj.weight";
  })->shape = {72, 39};
  REQUIRE_THROWS_WITH(load("narrow", narrow), Catch::Contains("model.layers.1.mlp.up_proj.weight"));
}

TEST_CASE("buffers of older checkpoints and a stored copy of a tied head are passed over") {
  const TemporaryDirectory directory;
  const std::string config = tiny_config("llama", 1, R"(,"tie_word_embeddings":true)");
  auto list = tensors_of(parse_model_config(config), "F32");
  list.push_back({"model.layers.0.self_attn.rotary_emb.inv_freq", "F32", {10}});
  list.push_back({"lm_head.weight", "F32", {97, 40}});
  write_checkpoint(directory.path(), config, list);
  REQUIRE(ModelWeights::load(Checkpoint::open(directory.path())).layers.size() == 1);
}

TEST_CASE("a layer of low rank is two factors, and costs what they cost") {
  const TemporaryDirectory directory;
  const std::string up = "model.layers.1.mlp.up_proj", query = "model.layers.0.self_attn.q_proj";
  const std::string config = tiny_config(
      "llama", 2,
      R"(,"modicum":{"low_rank":{"modules":{")" + up + R"(":7,"re:.*0\\.self_attn\\.q_proj":3}}})");
  auto list = tensors_of(parse_model_config(config), "BF16");
  const auto split = [&list](const std::string& name, std::size_t rows, std::size_t rank, std::size_t cols) {
    std::erase_if(list, [&](const TensorSpec& spec) { return spec.name == name + ".weight"; });
    list.push_back({name + ".weight_u", "BF16", {rows, rank}});
    list.push_back({name + ".weight_v", "BF16", {rank, cols}});
  };
  write_checkpoint(directory / "whole", tiny_config("llama", 2), list);
  const ModelWeights whole = ModelWeights::load(Checkpoint::open(directory / "whole"));
  split(up, 72, 7, 40);
  split(query, 80, 3, 40);
  write_checkpoint(directory / "factors", config, list);
  const Checkpoint checkpoint = Checkpoint::open(directory / "factors");
  const ModelWeights weights = ModelWeights::load(checkpoint);
  CHECK(weights.dtype == DType::bf16);
  CHECK(weights.layers[1].up.inner.data == checkpoint.bytes(up + ".weight_v").data());
  CHECK(weights.layers[1].up.weight.data == checkpoint.bytes(up + ".weight_u").data());
  CHECK(weights.layers[0].q.inner.rows == 3);
  CHECK(weights.layers[0].up.inner.empty());
  const std::size_t saved = 72 * 40 - 7 * (72 + 40) + 80 * 40 - 3 * (80 + 40);
  CHECK(weights.token_cost().multiply_adds == whole.token_cost().multiply_adds - saved);
  CHECK(weights.token_cost().bytes == whole.token_cost().bytes - 2 * saved);

  const auto refused = [&](const std::string& name, const std::string& json, const auto& specs_of) {
    write_checkpoint(directory / name, json, specs_of);
    CHECK_THROWS_AS(ModelWeights::load(Checkpoint::open(directory / name)), FormatError);
    CHECK_THROWS_WITH(ModelWeights::load(Checkpoint::open(directory / name)), Catch::Contains("weight_"));
  };
  refused("unannounced", tiny_config("llama", 2), [&] {
    auto both = list;
    both.push_back({up + ".weight", "BF16", {72, 40}});
    both.push_back({query + ".weight", "BF16", {80, 40}});
    return both;
  }());
  auto narrow = list;
  narrow.back().shape = {4, 40};
  refused("narrow", config, narrow);
  auto missing = list;
  missing.pop_back();
  refused("missing", config, missing);
}
