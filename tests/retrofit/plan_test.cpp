// SPDX-License-Identifier: Apache-2.0
#include <string>
#include <utility>
#include <vector>

#include <modicum/base/error.hpp>
#include <modicum/retrofit/plan.hpp>

#include "support/catch.hpp"

using namespace modicum;
using namespace modicum::retrofit;
using Catch::Matchers::Contains;

namespace {

ModelConfig config_of(const std::string& model_type = "llama") {
  return parse_model_config(
      R"({"model_type":")" + model_type +
      R"(","hidden_size":64,"intermediate_size":192,"num_hidden_layers":4,"num_attention_heads":4,)"
      R"("num_key_value_heads":4,"head_dim":16,"vocab_size":100,"max_position_embeddings":128,)"
      R"("sliding_window":null})");
}

Plan full_plan() {
  Plan plan;
  plan.depth = {.first = 1, .count = 2, .refit = Refit::none};
  plan.window = {.window = 16, .layers = {0, 3}, .refit = Refit::none};
  plan.kv = {.kv_heads = 2, .method = KvMergeMethod::procrustes, .refit = Refit::none};
  plan.ffn = {.intermediate_size = 128, .choice = ChannelChoice::wanda, .refit = Refit::least_squares};
  plan.low_rank = {.modules = {"q_proj", "down_proj"}, .keep = 0.25};
  plan.quantize = QuantizeEdit{.bits = 4,
                               .group = 64,
                               .rounding = Rounding::nearest,
                               .scaling = Scaling::awq,
                               .layer_bits = {{0, 8}, {12, 8}},
                               .head_bits = 8};
  return plan;
}

std::string said(const std::string& json) {
  try {
    Plan::from_json(json);
  } catch (const FormatError& error) {
    return error.what();
  }
  return "nothing";
}

std::string refusal(const Plan& plan, const ModelConfig& config = config_of()) {
  try {
    check_plan(plan, config);
  } catch (const InvalidArgument& error) {
    return error.what();
  } catch (const Unsupported& error) {
    return std::string("unsupported ") + error.what();
  }
  return "nothing";
}

}  // namespace

TEST_CASE("A plan comes back from its JSON, and the same plan gives the same text") {
  const std::string text = full_plan().to_json();
  CHECK_THAT(text, Contains("\"schema\": \"modicum.retrofit.plan/1\""));
  const Plan plan = Plan::from_json(text);
  CHECK(plan.to_json() == text);
  CHECK(plan.depth->count == 2);
  CHECK(plan.window->layers == std::vector<std::size_t>{0, 3});
  CHECK(plan.kv->method == KvMergeMethod::procrustes);
  CHECK(plan.ffn->choice == ChannelChoice::wanda);
  CHECK(plan.ffn->refit == Refit::least_squares);
  CHECK(plan.low_rank->keep == 0.25);
  CHECK(plan.quantize->layer_bits.at(12) == 8);
  CHECK(plan.quantize->head_bits == 8u);
  for (const Refit refit : {Refit::least_squares, Refit::alternating, Refit::none}) {
    Plan one;
    one.kv = {.kv_heads = 1, .method = KvMergeMethod::mean, .refit = refit};
    CHECK(Plan::from_json(one.to_json()).kv->refit == refit);
  }
}

TEST_CASE("Fields that are left out have their defaults") {
  CHECK(Plan::from_json("{}").empty());
  CHECK(Plan::from_json(R"({"schema":"modicum.retrofit.plan/1","kv":null})").empty());
  const Plan plan = Plan::from_json(
      R"({"ffn":{"intermediate_size":128},"kv":{"kv_heads":2},"quantize":{},"depth":{"first":1,"count":1},)"
      R"("window":{"window":8,"layers":[2,0,2]}})");
  CHECK(plan.ffn->refit == Refit::alternating);
  CHECK(plan.ffn->choice == ChannelChoice::second_order);
  CHECK(plan.kv->method == KvMergeMethod::complex_pca);
  CHECK(plan.kv->refit == Refit::least_squares);
  CHECK(plan.quantize->bits == 8);
  CHECK(plan.quantize->group == 32);
  CHECK_FALSE(plan.quantize->head_bits);
  CHECK(plan.depth->refit == Refit::alternating);
  CHECK(plan.window->layers == std::vector<std::size_t>{0, 2});
}

TEST_CASE("Fields that are unknown or of another type are named") {
  const std::vector<std::pair<const char*, const char*>> cases{
      {R"({"quantise":{}})", "plan: quantise"},
      {R"({"kv":{"kv_heads":2,"head":1}})", "plan: kv.head"},
      {R"({"ffn":{"intermediate_size":128,"widht":1}})", "plan: ffn.widht"},
      {R"({"depth":{"first":1,"count":1,"last":2}})", "plan: depth.last"},
      {R"({"window":{"window":1,"layers":[],"x":0}})", "plan: window.x"},
      {R"({"low_rank":{"modules":[],"keep":1,"rank":3}})", "plan: low_rank.rank"},
      {R"({"quantize":{"grop":32}})", "plan: quantize.grop"},
      {R"({"kv":{}})", "kv_heads"},
      {R"({"kv":{"kv_heads":"2"}})", "kv_heads"},
      {R"({"kv":{"kv_heads":2.5}})", "kv_heads"},
      {R"({"kv":{"kv_heads":-2}})", "kv_heads"},
      {R"({"kv":{"kv_heads":0}})", "kv_heads"},
      {R"({"kv":{"kv_heads":1e30}})", "kv_heads"},
      {R"({"kv":{"kv_heads":2,"method":"median"}})", "complex_pca, procrustes, mean, first"},
      {R"({"kv":{"kv_heads":2,"method":7}})", "method"},
      {R"({"ffn":{"intermediate_size":128,"refit":"some"}})", "least_squares, alternating, none"},
      {R"({"ffn":{"intermediate_size":128,"choice":null}})", "choice"},
      {R"({"depth":{"count":1}})", "first"},
      {R"({"window":{"window":8,"layers":3}})", "layers"},
      {R"({"window":{"window":8,"layers":[-1]}})", "layers"},
      {R"({"window":{"window":8,"layers":["a"]}})", "layers"},
      {R"({"low_rank":{"modules":["q_proj"]}})", "keep"},
      {R"({"low_rank":{"modules":["q_proj"],"keep":1.5}})", "keep"},
      {R"({"low_rank":{"modules":[1],"keep":0.5}})", "modules"},
      {R"({"quantize":{"bits":16}})", "bits"},
      {R"({"quantize":{"layer_bits":{"one":4}}})", "layer_bits"},
      {R"({"quantize":{"layer_bits":{"1":"4"}}})", "layer_bits"},
      {R"({"quantize":{"layer_bits":[4]}})", "layer_bits"},
      {R"({"quantize":{"head_bits":1}})", "head_bits"},
      {R"({"schema":"modicum.retrofit.plan/2"})", "schema"},
      {R"({"schema":1})", "schema"},
      {R"({"kv":[2]})", "kv"},
      {R"({"kv":true})", "kv"},
      {R"([])", "plan"},
      {R"({"kv":)", "plan"},
      {"", "plan"},
  };
  for (const auto& [json, field] : cases) {
    INFO(json);
    CHECK_THAT(said(json), Contains(field));
  }
}

TEST_CASE("Plans that fit are let through") {
  Plan plan = full_plan();
  plan.low_rank.reset();
  plan.quantize->layer_bits = {{3, 8}};
  CHECK(refusal(plan) == "nothing");
  CHECK(refusal(Plan{}) == "nothing");
  Plan rows;
  rows.quantize = QuantizeEdit{.group = 0, .head_bits = 8};
  CHECK(refusal(rows) == "nothing");
}

TEST_CASE("Plans that do not fit the model are refused by field") {
  const auto check = [](auto change, const char* what) {
    Plan plan;
    change(plan);
    INFO(what);
    CHECK_THAT(refusal(plan), Contains(what));
  };
  for (const std::size_t width : {0u, 100u, 192u, 256u}) {
    check([&](Plan& p) { p.ffn = FfnEdit{.intermediate_size = width}; },
          "ffn.intermediate_size: expected a multiple of 64 below 192");
  }
  for (const std::size_t heads : {0u, 3u, 4u, 8u}) {
    check([&](Plan& p) { p.kv = KvEdit{.kv_heads = heads}; }, "kv.kv_heads: expected a divisor of 4");
  }
  for (const auto& [first, count] :
       {std::pair<std::size_t, std::size_t>{0, 1}, {4, 1}, {1, 4}, {2, 0}, {1, ~std::size_t{0}}}) {
    check([&, f = first, c = count](Plan& p) { p.depth = DepthEdit{.first = f, .count = c}; },
          "depth: expected layers among 1 to 3");
  }
  for (const std::size_t window : {0u, 128u}) {
    check([&](Plan& p) { p.window = WindowEdit{.window = window, .layers = {0}}; }, "window.window");
  }
  for (const std::vector<std::size_t>& layers :
       {std::vector<std::size_t>{}, {4}, {9, 1}, {2, 1}, {1, 1}, {0, ~std::size_t{0}}}) {
    check([&](Plan& p) { p.window = WindowEdit{.window = 8, .layers = layers}; }, "window.layers");
  }
  for (const std::size_t bits : {2u, 5u, 16u}) {
    check([&](Plan& p) { p.quantize = QuantizeEdit{.bits = bits}; }, "quantize bits: expected 4 or 8");
    check([&](Plan& p) { p.quantize = QuantizeEdit{.head_bits = bits}; }, "quantize bits: expected 4 or 8");
    check([&](Plan& p) { p.quantize = QuantizeEdit{.layer_bits = {{1, bits}}}; }, "quantize bits");
  }
  check([](Plan& p) { p.quantize = QuantizeEdit{.group = 48}; }, "quantize.group");
  check([](Plan& p) { p.quantize = QuantizeEdit{.bits = 4, .group = 0}; }, "quantize.group");
  check([](Plan& p) { p.quantize = QuantizeEdit{.group = 0, .head_bits = 4}; }, "quantize.group");
  check([](Plan& p) { p.quantize = QuantizeEdit{.group = 0, .layer_bits = {{1, 4}}}; }, "quantize.group");
  check([](Plan& p) { p.quantize = QuantizeEdit{.layer_bits = {{4, 4}}}; }, "among 0 to 3, got 4");
  check([](Plan& p) { p.low_rank = LowRankEdit{.modules = {"lm_head"}}; }, "low_rank.modules");
  check(
      [](Plan& p) {
        p.low_rank = LowRankEdit{.modules = {"q_proj"}};
        p.quantize = QuantizeEdit{};
      },
      "unsupported [plan] low_rank beside quantize");
}

TEST_CASE("Models that cannot be edited so are refused with the reason") {
  Plan plan;
  plan.kv = KvEdit{.kv_heads = 2};
  CHECK_THAT(refusal(plan, config_of("qwen3")), Contains("unsupported") && Contains("QK-norm"));
  plan.kv.reset();
  plan.ffn = FfnEdit{.intermediate_size = 128};
  CHECK(refusal(plan, config_of("qwen3")) == "nothing");
  ModelConfig config = config_of();
  config.quantization.emplace();
  CHECK_THAT(refusal(plan, config), Contains("quantised already"));
  config = config_of();
  config.low_rank.emplace();
  CHECK_THAT(refusal(plan, config), Contains("low rank"));
  config = config_of();
  config.sliding_window.assign(4, 24);
  plan.window = WindowEdit{.window = 16, .layers = {1}};
  CHECK_THAT(refusal(plan, config), Contains("the model's own window, 24"));
  plan.window->window = 24;
  CHECK(refusal(plan, config) == "nothing");
  config = config_of();
  config.intermediate_size = 160;  // no multiple of 64: steps of 32
  plan.window.reset();
  plan.ffn->intermediate_size = 96;
  CHECK(refusal(plan, config) == "nothing");
}

TEST_CASE("A planned configuration has the shapes of the plan") {
  Plan plan = full_plan();
  const ModelConfig planned = planned_config(config_of(), plan);
  CHECK(planned.num_hidden_layers == 2);
  CHECK(planned.num_key_value_heads == 2);
  CHECK(planned.intermediate_size == 128);
  CHECK(planned.sliding_window == std::vector<std::size_t>{16, 16});
  CHECK(planned.num_attention_heads == 4);
  const ModelConfig same = planned_config(config_of(), Plan{});
  CHECK(same.num_hidden_layers == 4);
  CHECK(same.sliding_window == config_of().sliding_window);
}

TEST_CASE("Only edits in closed form of the weights alone need no text") {
  const auto needs = [](auto change) {
    Plan plan;
    change(plan);
    return plan.needs_text();
  };
  CHECK_FALSE(needs([](Plan&) {}));
  CHECK_FALSE(needs([](Plan& p) { p.depth = DepthEdit{.first = 1, .count = 1, .refit = Refit::none}; }));
  CHECK_FALSE(needs([](Plan& p) { p.quantize = QuantizeEdit{.rounding = Rounding::nearest}; }));
  CHECK_FALSE(
      needs([](Plan& p) { p.window = WindowEdit{.window = 8, .layers = {1}, .refit = Refit::none}; }));
  CHECK(needs([](Plan& p) { p.depth = DepthEdit{.first = 1, .count = 1}; }));
  CHECK(needs([](Plan& p) { p.window = WindowEdit{.window = 8, .layers = {1}}; }));
  CHECK(needs([](Plan& p) { p.kv = KvEdit{.kv_heads = 1, .refit = Refit::none}; }));
  CHECK(needs([](Plan& p) { p.ffn = FfnEdit{.intermediate_size = 64, .refit = Refit::none}; }));
  CHECK(needs([](Plan& p) { p.low_rank = LowRankEdit{.modules = {"q_proj"}}; }));
  CHECK(needs([](Plan& p) { p.quantize = QuantizeEdit{}; }));
  CHECK(needs(
      [](Plan& p) { p.quantize = QuantizeEdit{.rounding = Rounding::nearest, .scaling = Scaling::smooth}; }));
}
