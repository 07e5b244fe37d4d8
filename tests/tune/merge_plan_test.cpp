// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <limits>
#include <string>

#include <modicum/base/error.hpp>
#include <modicum/tune/merge_plan.hpp>

#include "support/catch.hpp"

using namespace modicum;
using namespace modicum::tune;
using Catch::Matchers::Contains;

namespace {

constexpr const char* kModels = R"("models":[{"model":"m"}])";

std::string plan_text(const std::string& fields) {
  return R"({"method":"ties","base":"b",)" + fields + "}";
}

MergePlan plan_of(Method method, std::size_t models = 1) {
  MergePlan plan{.method = method, .base = method == Method::linear ? "" : "base"};
  plan.models.assign(models, MergeInput{.model = "m"});
  return plan;
}

}  // namespace

TEST_CASE("a plan is what its own JSON gives again") {
  MergePlan plan = plan_of(Method::dare_ties, 2);
  plan.definition = Definition::peft;
  plan.base_adapter = "ba";
  plan.onto = "onto";
  plan.models[0].adapter = "a";
  plan.models[0].weight = Setting({{"mlp", {0.25, 1.0}}, {"", {2.0}}});
  plan.models[1].density = 0.125;
  plan.models[1].gamma = 0.5;
  plan.lambda = Setting({{"", {0.0, 0.5, 1.0}}});
  plan.normalize = false;
  plan.rescale = Rescale::inverse_density;
  plan.seed = std::numeric_limits<std::uint64_t>::max();
  plan.dtype = DType::f16;
  plan.vocabulary = VocabularyRule::all;
  plan.tokenizer = "m";
  plan.tokens = {{"<end>", "<|im_end|>"}};
  plan.chat = "m";
  plan.untie = true;
  const std::string text = plan.to_json();
  const MergePlan read = parse_merge_plan(text);
  CHECK(read.to_json() == text);
  CHECK(read.method == Method::dare_ties);
  CHECK(read.definition == Definition::peft);
  CHECK(read.base == "base");
  CHECK(read.base_adapter == "ba");
  CHECK(read.onto == "onto");
  REQUIRE(read.models.size() == 2);
  CHECK(read.models[0].adapter == "a");
  CHECK(read.models[0].weight.at("mlp.up", 1) == 1.0);
  CHECK(read.models[0].weight.at("q", 1) == 2.0);
  CHECK(read.models[1].density.at("q", 0) == 0.125);
  CHECK(read.models[1].gamma.at("q", 0) == 0.5);
  CHECK(read.lambda.at("q", 0.75) == 0.75);
  CHECK(read.normalize == false);
  CHECK(read.rescale == Rescale::inverse_density);
  CHECK(read.seed == plan.seed);
  CHECK(read.dtype == DType::f16);
  CHECK(read.vocabulary == VocabularyRule::all);
  CHECK(read.tokenizer == "m");
  CHECK(read.tokens == plan.tokens);
  CHECK(read.chat == "m");
  CHECK(read.untie);
  MergePlan slerp = plan_of(Method::slerp);
  slerp.t = 0.125;
  CHECK(parse_merge_plan(slerp.to_json()).t.at("q", 0) == 0.125);
}

TEST_CASE("every method is spelt as it is read") {
  for (const Method method :
       {Method::linear, Method::slerp, Method::task_arithmetic, Method::ties, Method::magnitude_prune,
        Method::dare_linear, Method::dare_ties, Method::breadcrumbs, Method::breadcrumbs_ties}) {
    const std::string text = R"({"method":")" + std::string(name_of(method)) + "\"," + kModels + "}";
    CHECK(parse_merge_plan(text).method == method);
    CHECK(needs_base(method) == (method != Method::linear));
  }
}

TEST_CASE("what a plan does not say has its default") {
  const MergePlan plan = parse_merge_plan(plan_text(kModels));
  CHECK(plan.definition == Definition::mergekit);
  CHECK(plan.models[0].weight.at("q", 0) == 1.0);
  CHECK(plan.models[0].density.at("q", 0) == 1.0);
  CHECK(plan.models[0].gamma.at("q", 0) == 0.01);
  CHECK(plan.lambda.at("q", 0) == 1.0);
  CHECK(plan.t.at("q", 0) == 0.5);
  CHECK(plan.seed == 0);
  CHECK_FALSE(plan.normalize);
  CHECK_FALSE(plan.rescale);
  CHECK_FALSE(plan.dtype);
  CHECK(plan.vocabulary == VocabularyRule::same);
  CHECK_FALSE(plan.untie);
}

TEST_CASE("the first filter that fits a name counts, and several values are a line over the layers") {
  const Setting setting({{"self_attn", {0, 1}}, {"mlp.up", {3}}, {"*", {10, 20, 40}}, {"mlp", {7}}});
  CHECK(setting.at("model.layers.0.self_attn.q_proj.weight", 0) == 0.0);
  CHECK(setting.at("model.layers.0.self_attn.q_proj.weight", 0.25) == 0.25);
  CHECK(setting.at("model.layers.0.mlp.up_proj.weight", 0.5) == 3.0);
  CHECK(setting.at("model.layers.0.mlp.down_proj.weight", 0.25) == 15.0);
  CHECK(setting.at("model.norm.weight", 0.75) == 30.0);
  CHECK(setting.at("model.norm.weight", 1) == 40.0);
  CHECK_FALSE(Setting({{"mlp", {7}}}).at("model.norm.weight", 0));
  const MergePlan plan = parse_merge_plan(
      plan_text(R"("models":[{"model":"m","weight":[{"filter":"mlp","value":[0,1]},{"value":0.5}],)"
                R"("density":[0.2,0.4]}])"));
  CHECK(plan.models[0].weight.at("mlp", 0.5) == 0.5);
  CHECK(plan.models[0].weight.at("q", 1) == 0.5);
  CHECK(plan.models[0].density.at("mlp", 1) == 0.4);
}

TEST_CASE("a plan of names or values that are not known is refused with the field") {
  const auto refusal = [](const std::string& text) {
    try {
      parse_merge_plan(text);
    } catch (const FormatError& error) {
      return std::string(error.what());
    }
    return std::string("nothing");
  };
  const auto with = [&](const std::string& field) { return refusal(plan_text(field + "," + kModels)); };
  CHECK_THAT(refusal("{"), Contains("JSON"));
  CHECK_THAT(refusal("[]"), Contains("a JSON object"));
  CHECK_THAT(refusal(R"({"models":[]})"), Contains("method"));
  CHECK_THAT(refusal(R"({"method":"tries","models":[]})"), Contains("tries") && Contains("task_arithmetic"));
  CHECK_THAT(refusal(plan_text(R"("seed":1)")), Contains("models"));
  CHECK_THAT(refusal(plan_text(R"("models":{})")), Contains("an array of models"));
  CHECK_THAT(refusal(plan_text(R"("models":[{}])")), Contains("models: model"));
  CHECK_THAT(refusal(plan_text(R"("models":[{"model":"m","wieght":1}])")), Contains("wieght"));
  CHECK_THAT(with(R"("lamda":1)"), Contains("lamda"));
  CHECK_THAT(with(R"("schema":"modicum.tune.merge/2")"), Contains("modicum.tune.merge/1"));
  CHECK_THAT(with(R"("definition":"theirs")"), Contains("theirs"));
  CHECK_THAT(with(R"("vocabulary":"any")"), Contains("any"));
  CHECK_THAT(with(R"("rescale":"l2")"), Contains("l2"));
  CHECK_THAT(with(R"("dtype":"f64")"), Contains("f64"));
  CHECK_THAT(with(R"("seed":-1)"), Contains("seed"));
  CHECK_THAT(with(R"("seed":1.5)"), Contains("seed"));
  CHECK_THAT(with(R"("tokens":["a"])"), Contains("token to token"));
  CHECK_THAT(with(R"("tokens":{"a":1})"), Contains("token to token"));
  CHECK_THAT(with(R"("untie":1)"), Contains("true or false"));
  CHECK_THAT(with(R"("normalize":"yes")"), Contains("true or false"));
  CHECK_THAT(with(R"("lambda":"1")"), Contains("lambda") && Contains("numbers"));
  CHECK_THAT(with(R"("lambda":1e31)"), Contains("numbers"));
  CHECK_THAT(with(R"("lambda":[])"), Contains("at least one number"));
  CHECK_THAT(with(R"("lambda":[1,"2"])"), Contains("numbers"));
  CHECK_THAT(with(R"("lambda":[{"filter":"mlp"}])"), Contains("value"));
  CHECK_THAT(with(R"("lambda":[{"filter":"mlp","values":1}])"), Contains("values"));
  CHECK_THAT(with(R"("lambda":[{"filter":"mlp","value":[]}])"), Contains("at least one number"));
  CHECK_THAT(with(R"("lambda":[{"value":1},2])"), Contains("a JSON object"));
}

TEST_CASE("a plan that no models could fit is refused before any is opened") {
  const auto refusal = [](const MergePlan& plan) {
    try {
      check_merge_plan(plan);
    } catch (const InvalidArgument& error) {
      return std::string(error.what());
    }
    return std::string("nothing");
  };
  CHECK(refusal(plan_of(Method::ties, 3)) == "nothing");
  CHECK_THAT(refusal(plan_of(Method::ties, 0)), Contains("at least one"));
  CHECK_THAT(refusal(plan_of(Method::slerp, 2)), Contains("one beside the base"));
  MergePlan plan = plan_of(Method::ties);
  plan.base.clear();
  CHECK_THAT(refusal(plan), Contains("base of ties"));
  plan = plan_of(Method::linear);
  plan.base = "b";
  CHECK_THAT(refusal(plan), Contains("base of linear"));
  plan = plan_of(Method::slerp);
  plan.onto = "o";
  CHECK_THAT(refusal(plan), Contains("onto"));
  plan = plan_of(Method::ties);
  plan.models[0].density = 1.5;
  CHECK_THAT(refusal(plan), Contains("density") && Contains("1.5"));
  plan.models[0].density = Setting({{"mlp", {0.5}}, {"", {0.5, -0.5}}});
  CHECK_THAT(refusal(plan), Contains("density") && Contains("-0.5"));
  plan = plan_of(Method::breadcrumbs);
  plan.models[0].gamma = std::numeric_limits<double>::quiet_NaN();
  CHECK_THAT(refusal(plan), Contains("gamma"));
  plan = plan_of(Method::slerp);
  plan.t = -1.0;
  CHECK_THAT(refusal(plan), Contains("[merge_plan] t"));
  plan = plan_of(Method::ties);
  plan.models[0].model.clear();
  CHECK_THAT(refusal(plan), Contains("an empty name"));
}

TEST_CASE("TIES of the paper takes neither weights nor a density that varies") {
  MergePlan plan = plan_of(Method::ties);
  plan.definition = Definition::paper;
  CHECK_NOTHROW(check_merge_plan(plan));
  plan.models[0].weight = 0.5;
  CHECK_THROWS_WITH(check_merge_plan(plan), Contains("use lambda"));
  plan.models[0].weight = 1.0;
  plan.models[0].density = Setting({{"", {0.5, 0.6}}});
  CHECK_THROWS_WITH(check_merge_plan(plan), Contains("one vector"));
  plan.models[0].density = Setting({{"mlp", {0.5}}});
  CHECK_THROWS_WITH(check_merge_plan(plan), Contains("one vector"));
}
