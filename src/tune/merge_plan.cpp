// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include <modicum/base/error.hpp>
#include <modicum/tune/merge_plan.hpp>

#include "../base/json.hpp"
#include "../base/quote.hpp"

namespace modicum::tune {
namespace {

constexpr std::string_view kOp = "merge_plan";
constexpr const char* kSchema = "modicum.tune.merge/1";

constexpr JsonNames<Method, 9> kMethods{{{{Method::linear, "linear"},
                                          {Method::slerp, "slerp"},
                                          {Method::task_arithmetic, "task_arithmetic"},
                                          {Method::ties, "ties"},
                                          {Method::magnitude_prune, "magnitude_prune"},
                                          {Method::dare_linear, "dare_linear"},
                                          {Method::dare_ties, "dare_ties"},
                                          {Method::breadcrumbs, "breadcrumbs"},
                                          {Method::breadcrumbs_ties, "breadcrumbs_ties"}}}};
constexpr JsonNames<Definition, 3> kDefinitions{
    {{{Definition::mergekit, "mergekit"}, {Definition::peft, "peft"}, {Definition::paper, "paper"}}}};
constexpr JsonNames<Rescale, 3> kRescales{{{{Rescale::none, "none"},
                                            {Rescale::inverse_density, "inverse_density"},
                                            {Rescale::l1_norm, "l1_norm"}}}};
constexpr JsonNames<VocabularyRule, 3> kVocabularies{
    {{{VocabularyRule::same, "same"}, {VocabularyRule::match, "match"}, {VocabularyRule::all, "all"}}}};
constexpr JsonNames<DType, 3> kDtypes{{{{DType::f32, "f32"}, {DType::bf16, "bf16"}, {DType::f16, "f16"}}}};

double number_from(const Json& value, const JsonFields& fields, const char* field) {
  if (!value.is_number() || !std::isfinite(value.get<double>()) || std::abs(value.get<double>()) > 1e30) {
    fields.refuse(field, "numbers, or lists of {\"filter\", \"value\"} with numbers");
  }
  return value.get<double>();
}

Setting::Rule rule_from(const Json& value, std::string filter, const JsonFields& fields, const char* field) {
  Setting::Rule rule{.filter = std::move(filter)};
  if (!value.is_array()) {
    rule.values.push_back(number_from(value, fields, field));
    return rule;
  }
  for (const Json& part : value) rule.values.push_back(number_from(part, fields, field));
  if (rule.values.empty()) fields.refuse(field, "at least one number");
  return rule;
}

Setting setting_from(const JsonFields& fields, const char* field, Setting fallback) {
  if (!fields.has_value(field)) return fallback;
  const Json& json = fields.at(field);
  const bool rules = json.is_array() && !json.empty() && json.front().is_object();
  if (!rules) return Setting({rule_from(json, "", fields, field)});
  std::vector<Setting::Rule> found;
  for (const Json& entry : json) {
    const JsonFields rule(entry, kOp, fields.name(field) + ": ");
    rule.refuse_unknown({"filter", "value"});
    found.push_back(rule_from(rule.at("value"), rule.text_or("filter", ""), fields, field));
  }
  return Setting(std::move(found));
}

Json json_of(const Setting& setting) {
  Json rules = Json::array();
  for (const Setting::Rule& rule : setting.rules()) {
    Json value = rule.values.size() == 1 ? Json(rule.values[0]) : Json(rule.values);
    if (setting.rules().size() == 1 && rule.filter.empty()) return value;
    rules.push_back({{"filter", rule.filter}, {"value", std::move(value)}});
  }
  return rules;
}

MergeInput input_from(const Json& json) {
  const JsonFields fields(json, kOp, "plan: models: ");
  fields.refuse_unknown({"model", "adapter", "weight", "density", "gamma"});
  return {.model = fields.text("model"),
          .adapter = fields.text_or("adapter", ""),
          .weight = setting_from(fields, "weight", 1.0),
          .density = setting_from(fields, "density", 1.0),
          .gamma = setting_from(fields, "gamma", 0.01)};
}

std::map<std::string, std::string> tokens_from(const JsonFields& fields) {
  std::map<std::string, std::string> tokens;
  if (!fields.has_value("tokens")) return tokens;
  const Json& json = fields.at("tokens");
  if (!json.is_object()) fields.refuse("tokens", "an object from token to token");
  for (const auto& [token, other] : json.items()) {
    if (!other.is_string()) fields.refuse("tokens", "an object from token to token");
    tokens[token] = other.get<std::string>();
  }
  return tokens;
}

[[noreturn]] void refuse(std::string what, std::string expected, std::string got, std::string todo = {}) {
  fail({.op = kOp,
        .what = std::move(what),
        .expected = std::move(expected),
        .got = std::move(got),
        .todo = std::move(todo)});
}

void check_share(const Setting& setting, const char* name) {
  for (const Setting::Rule& rule : setting.rules()) {
    for (const double value : rule.values) {
      if (!(value >= 0 && value <= 1)) refuse(name, "0 to 1", Json(value).dump());
    }
  }
}

void check_counts(const MergePlan& plan) {
  const std::size_t count = plan.models.size();
  if (plan.method == Method::slerp && count != 1) {
    refuse("models of slerp", "one beside the base", std::to_string(count));
  }
  if (count == 0) refuse("models", "at least one", "none");
  if (needs_base(plan.method) && plan.base.empty()) {
    refuse("base of " + std::string(name_of(plan.method)), "a model that differences are taken from", "none");
  }
  const bool direct = plan.method == Method::linear || plan.method == Method::slerp;
  if (direct && !plan.onto.empty()) {
    refuse("onto", "none with " + std::string(name_of(plan.method)), quote(plan.onto),
           "it is for methods that add differences");
  }
  if (plan.method == Method::linear && !plan.base.empty()) {
    refuse("base of linear", "none", quote(plan.base), "give it as one of the models");
  }
}

void check_definition(const MergePlan& plan) {
  if (plan.definition != Definition::paper || plan.method != Method::ties) return;
  for (const MergeInput& input : plan.models) {
    const auto& rules = input.weight.rules();
    const bool one =
        rules.size() == 1 && rules[0].filter.empty() && rules[0].values == std::vector<double>{1.0};
    if (!one)
      refuse("weight", "1, as TIES has no weights in its paper", json_of(input.weight).dump(), "use lambda");
    const auto& densities = input.density.rules();
    if (densities.size() != 1 || densities[0].values.size() != 1 || !densities[0].filter.empty()) {
      refuse("density", "one number, as the paper trims the model as one vector",
             json_of(input.density).dump());
    }
  }
}

}  // namespace

std::string_view name_of(Method method) {
  return kMethods.of(method);
}

bool needs_base(Method method) {
  return method != Method::linear;
}

std::optional<double> Setting::at(std::string_view tensor, double depth) const {
  for (const Rule& rule : rules_) {
    const bool fits =
        rule.filter.empty() || rule.filter == "*" || tensor.find(rule.filter) != std::string_view::npos;
    if (!fits || rule.values.empty()) continue;
    const double at = std::clamp(depth, 0.0, 1.0) * static_cast<double>(rule.values.size() - 1);
    const auto below = static_cast<std::size_t>(at);
    const std::size_t above = std::min(below + 1, rule.values.size() - 1);
    const double part = at - static_cast<double>(below);
    return (1 - part) * rule.values[below] + part * rule.values[above];
  }
  return std::nullopt;
}

const std::string& MergePlan::foundation() const {
  if (!onto.empty()) return onto;
  return base.empty() ? models.front().model : base;
}

std::string MergePlan::to_json() const {
  Json inputs = Json::array();
  for (const MergeInput& input : models) {
    Json json = {{"model", input.model}, {"weight", json_of(input.weight)}};
    if (!input.adapter.empty()) json["adapter"] = input.adapter;
    json["density"] = json_of(input.density);
    json["gamma"] = json_of(input.gamma);
    inputs.push_back(std::move(json));
  }
  Json json = {{"schema", kSchema},
               {"method", kMethods.of(method)},
               {"definition", kDefinitions.of(definition)},
               {"models", std::move(inputs)},
               {"lambda", json_of(lambda)},
               {"seed", seed},
               {"vocabulary", kVocabularies.of(vocabulary)}};
  if (method == Method::slerp) json["t"] = json_of(t);
  for (const auto& [name, text] :
       {std::pair("base", &base), std::pair("base_adapter", &base_adapter), std::pair("onto", &onto),
        std::pair("tokenizer", &tokenizer), std::pair("chat", &chat)}) {
    if (!text->empty()) json[name] = *text;
  }
  if (normalize) json["normalize"] = *normalize;
  if (rescale) json["rescale"] = kRescales.of(*rescale);
  if (dtype) json["dtype"] = kDtypes.of(*dtype);
  if (!tokens.empty()) json["tokens"] = tokens;
  if (untie) json["untie"] = true;
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

MergePlan parse_merge_plan(std::string_view text) {
  const Json json = parse_json(text, kOp, "plan");
  const JsonFields fields(json, kOp, "plan: ");
  fields.refuse_unknown({"schema", "method", "definition", "base", "base_adapter", "onto", "models", "lambda",
                         "t", "normalize", "rescale", "seed", "dtype", "vocabulary", "tokenizer", "tokens",
                         "chat", "untie"});
  if (fields.text_or("schema", kSchema) != kSchema) fields.refuse("schema", quote(kSchema));
  MergePlan plan{.method = kMethods.read(fields, "method"),
                 .definition = kDefinitions.read(fields, "definition", Definition::mergekit),
                 .base = fields.text_or("base", ""),
                 .base_adapter = fields.text_or("base_adapter", ""),
                 .onto = fields.text_or("onto", ""),
                 .models = {},
                 .lambda = setting_from(fields, "lambda", 1.0),
                 .t = setting_from(fields, "t", 0.5),
                 .seed = fields.integer_or("seed", 0, 0, std::numeric_limits<std::uint64_t>::max()),
                 .vocabulary = kVocabularies.read(fields, "vocabulary", VocabularyRule::same),
                 .tokenizer = fields.text_or("tokenizer", ""),
                 .tokens = tokens_from(fields),
                 .chat = fields.text_or("chat", ""),
                 .untie = fields.boolean_or("untie", false)};
  if (!fields.at("models").is_array()) fields.refuse("models", "an array of models");
  for (const Json& input : fields.at("models")) plan.models.push_back(input_from(input));
  if (fields.has_value("normalize")) plan.normalize = fields.boolean_or("normalize", false);
  if (fields.has_value("rescale")) plan.rescale = kRescales.read(fields, "rescale");
  if (fields.has_value("dtype")) plan.dtype = kDtypes.read(fields, "dtype");
  return plan;
}

void check_merge_plan(const MergePlan& plan) {
  check_counts(plan);
  check_definition(plan);
  for (const MergeInput& input : plan.models) {
    check_share(input.density, "density");
    check_share(input.gamma, "gamma");
    if (input.model.empty()) refuse("model", "a directory", "an empty name");
  }
  check_share(plan.t, "t");
}

}  // namespace modicum::tune
