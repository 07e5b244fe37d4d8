// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <functional>
#include <initializer_list>
#include <utility>

#include <modicum/base/error.hpp>
#include <modicum/retrofit/plan.hpp>
#include <modicum/tensor/matrix.hpp>

#include "../base/json.hpp"
#include "../base/quote.hpp"

namespace modicum::retrofit {
namespace {

constexpr std::string_view kOp = "plan";
constexpr const char* kSchema = "modicum.retrofit.plan/1";
constexpr std::size_t kMost = std::size_t{1} << 32;

constexpr JsonNames<Refit, 3> kRefits{
    {{{Refit::least_squares, "least_squares"}, {Refit::alternating, "alternating"}, {Refit::none, "none"}}}};
constexpr JsonNames<KvMergeMethod, 4> kMethods{{{{KvMergeMethod::complex_pca, "complex_pca"},
                                                 {KvMergeMethod::procrustes, "procrustes"},
                                                 {KvMergeMethod::mean, "mean"},
                                                 {KvMergeMethod::first, "first"}}}};
constexpr JsonNames<ChannelChoice, 3> kChoices{{{{ChannelChoice::second_order, "second_order"},
                                                 {ChannelChoice::wanda, "wanda"},
                                                 {ChannelChoice::magnitude, "magnitude"}}}};
constexpr JsonNames<Rounding, 2> kRoundings{{{{Rounding::nearest, "nearest"}, {Rounding::gptq, "gptq"}}}};
constexpr JsonNames<Scaling, 3> kScalings{
    {{{Scaling::none, "none"}, {Scaling::awq, "awq"}, {Scaling::smooth, "smooth"}}}};

/// Fields of one edit; refuses what is not among `known`.
JsonFields edit_fields(const Json& json, const char* edit, std::initializer_list<std::string_view> known) {
  JsonFields fields(json, kOp, edit == nullptr ? "plan: " : std::string("plan: ") + edit + ".");
  fields.refuse_unknown(known);
  return fields;
}

std::vector<std::size_t> layers_from(const JsonFields& fields, const char* field) {
  std::vector<std::size_t> layers;
  const Json& array = fields.at(field);
  if (!array.is_array()) fields.refuse(field, "an array of layers");
  for (const Json& layer : array) {
    if (!layer.is_number_unsigned() || layer.get<std::uint64_t>() > kMost) {
      fields.refuse(field, "an array of layers");
    }
    layers.push_back(layer.get<std::size_t>());
  }
  std::sort(layers.begin(), layers.end());
  layers.erase(std::unique(layers.begin(), layers.end()), layers.end());
  return layers;
}

QuantizeEdit quantize_from(const Json& json) {
  const JsonFields fields =
      edit_fields(json, "quantize", {"bits", "group", "rounding", "scaling", "layer_bits", "head_bits"});
  QuantizeEdit edit;
  edit.bits = fields.integer_or("bits", edit.bits, 2, 8);
  edit.group = fields.integer_or("group", edit.group, 0, kMost);
  edit.rounding = kRoundings.read(fields, "rounding", edit.rounding);
  edit.scaling = kScalings.read(fields, "scaling", edit.scaling);
  if (fields.has_value("head_bits")) edit.head_bits = fields.integer("head_bits", 2, 8);
  if (!fields.has_value("layer_bits")) return edit;
  const Json& by_layer = fields.at("layer_bits");
  const JsonFields layers(by_layer, kOp, "plan: quantize.layer_bits.");
  for (const auto& [name, value] : by_layer.items()) {
    if (name.empty() || name.size() > 6 || name.find_first_not_of("0123456789") != std::string::npos) {
      layers.refuse(name.c_str(), "a layer's number as the name");
    }
    edit.layer_bits[std::stoul(name)] = layers.integer(name.c_str(), 2, 8);
  }
  return edit;
}

LowRankEdit low_rank_from(const Json& json) {
  const JsonFields fields = edit_fields(json, "low_rank", {"modules", "keep"});
  LowRankEdit edit;
  edit.keep = fields.number("keep", 0.0, 1.0);
  const Json& modules = fields.at("modules");
  if (!modules.is_array()) fields.refuse("modules", "an array of names");
  for (const Json& module : modules) {
    if (!module.is_string()) fields.refuse("modules", "an array of names");
    edit.modules.push_back(module.get<std::string>());
  }
  return edit;
}

[[noreturn]] void refuse(std::string what, std::string expected, std::string got, std::string todo = {}) {
  fail({.op = kOp,
        .what = std::move(what),
        .expected = std::move(expected),
        .got = std::move(got),
        .todo = std::move(todo)});
}

void check_ffn(const FfnEdit& edit, const ModelConfig& config) {
  const std::size_t width = edit.intermediate_size;
  const std::size_t step = config.intermediate_size % 64 == 0 ? 64 : kQuantGroup;
  if (width == 0 || width >= config.intermediate_size || width % step != 0) {
    refuse("ffn.intermediate_size",
           "a multiple of " + std::to_string(step) + " below " + std::to_string(config.intermediate_size),
           std::to_string(width));
  }
}

/// Of an output projection there is one matrix: nothing to alternate with.
void check_output_refit(const char* edit, Refit refit) {
  if (refit == Refit::alternating)
    refuse(std::string(edit) + ".refit", "least_squares or none", "alternating");
}

void check_kv(const KvEdit& edit, const ModelConfig& config) {
  check_output_refit("kv", edit.refit);
  if (edit.kv_heads == 0 || edit.kv_heads >= config.num_key_value_heads ||
      config.num_key_value_heads % edit.kv_heads != 0) {
    refuse("kv.kv_heads", "a divisor of " + std::to_string(config.num_key_value_heads) + ", and smaller",
           std::to_string(edit.kv_heads));
  }
  if (config.qk_norm) {
    fail<Unsupported>({.op = kOp,
                       .what = "kv",
                       .expected = "keys that are linear in the layer's input",
                       .got = "keys and queries that are normalised by head (QK-norm) after their projection",
                       .todo = "leave the heads as they are, and keep keys and values as integers instead"});
  }
}

void check_depth(const DepthEdit& edit, const ModelConfig& config) {
  const bool inside = edit.count > 0 && edit.first > 0 && edit.first < config.num_hidden_layers &&
                      edit.count <= config.num_hidden_layers - edit.first;
  if (!inside) {
    refuse("depth",
           "layers among 1 to " + std::to_string(config.num_hidden_layers - 1) +
               " (the first one reads the embedding, and stays)",
           std::to_string(edit.count) + " from " + std::to_string(edit.first));
  }
}

void check_window(const WindowEdit& edit, const ModelConfig& config) {
  check_output_refit("window", edit.refit);
  if (edit.window == 0 || edit.window >= config.max_position_embeddings) {
    refuse("window.window", "1 to " + std::to_string(config.max_position_embeddings - 1),
           std::to_string(edit.window));
  }
  if (edit.layers.empty() || edit.layers.back() >= config.num_hidden_layers) {
    refuse("window.layers", "layers among 0 to " + std::to_string(config.num_hidden_layers - 1),
           edit.layers.empty() ? "none" : std::to_string(edit.layers.back()));
  }
  const auto out_of_order =
      std::adjacent_find(edit.layers.begin(), edit.layers.end(), std::greater_equal<>());
  if (out_of_order != edit.layers.end()) {
    refuse("window.layers", "each once, in ascending order",
           std::to_string(*out_of_order) + " before " + std::to_string(*std::next(out_of_order)));
  }
  for (const std::size_t window : config.sliding_window) {
    if (window != 0 && window != edit.window) {
      refuse("window.window", "the model's own window, " + std::to_string(window) + ": there is one for all",
             std::to_string(edit.window));
    }
  }
}

void check_low_rank(const Plan& plan) {
  static constexpr std::string_view kKinds[] = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                                "gate_proj", "up_proj", "down_proj"};
  for (const std::string& kind : plan.low_rank->modules) {
    if (std::find(std::begin(kKinds), std::end(kKinds), kind) != std::end(kKinds)) continue;
    refuse("low_rank.modules", "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj or down_proj",
           quote(kind));
  }
  if (!plan.quantize) return;
  fail<Unsupported>({.op = kOp,
                     .what = "low_rank beside quantize",
                     .expected = "one of them",
                     .got = "both",
                     .todo = "take fewer bits, or fewer channels"});
}

void check_quantize(const QuantizeEdit& edit, const ModelConfig& config) {
  const auto whole_bits = [](std::size_t bits) { return bits == 4 || bits == 8; };
  bool fits = whole_bits(edit.bits) && whole_bits(edit.head_bits.value_or(8));
  bool eight = edit.bits == 8 && edit.head_bits.value_or(8) == 8;
  for (const auto& [layer, bits] : edit.layer_bits) {
    fits = fits && whole_bits(bits);
    eight = eight && bits == 8;
    if (layer >= config.num_hidden_layers) {
      refuse("quantize.layer_bits", "layers among 0 to " + std::to_string(config.num_hidden_layers - 1),
             std::to_string(layer));
    }
  }
  if (!fits) refuse("quantize bits", "4 or 8", "others");
  const bool by_rows = edit.group == 0 && eight;
  if (!by_rows && (edit.group == 0 || edit.group % kQuantGroup != 0)) {
    refuse("quantize.group", "a multiple of " + std::to_string(kQuantGroup) + ", or 0 with 8 bits",
           std::to_string(edit.group));
  }
}

}  // namespace

bool Plan::needs_text() const {
  const bool drop_only = depth && depth->refit == Refit::none;
  const bool window_only = window && window->refit == Refit::none;
  const bool data_free =
      quantize && quantize->rounding == Rounding::nearest && quantize->scaling == Scaling::none;
  return (depth && !drop_only) || (window && !window_only) || kv || ffn || low_rank ||
         (quantize && !data_free);
}

std::string Plan::to_json() const {
  nlohmann::ordered_json json = {{"schema", kSchema}};
  if (depth) {
    json["depth"] = {{"first", depth->first}, {"count", depth->count}, {"refit", kRefits.of(depth->refit)}};
  }
  if (window) {
    json["window"] = {
        {"window", window->window}, {"layers", window->layers}, {"refit", kRefits.of(window->refit)}};
  }
  if (kv) {
    json["kv"] = {
        {"kv_heads", kv->kv_heads}, {"method", kMethods.of(kv->method)}, {"refit", kRefits.of(kv->refit)}};
  }
  if (ffn) {
    json["ffn"] = {{"intermediate_size", ffn->intermediate_size},
                   {"choice", kChoices.of(ffn->choice)},
                   {"refit", kRefits.of(ffn->refit)}};
  }
  if (low_rank) json["low_rank"] = {{"modules", low_rank->modules}, {"keep", low_rank->keep}};
  if (quantize) {
    nlohmann::ordered_json edit = {{"bits", quantize->bits},
                                   {"group", quantize->group},
                                   {"rounding", kRoundings.of(quantize->rounding)},
                                   {"scaling", kScalings.of(quantize->scaling)}};
    if (quantize->head_bits) edit["head_bits"] = *quantize->head_bits;
    if (!quantize->layer_bits.empty()) {
      edit["layer_bits"] = nlohmann::ordered_json::object();
      for (const auto& [layer, bits] : quantize->layer_bits) edit["layer_bits"][std::to_string(layer)] = bits;
    }
    json["quantize"] = std::move(edit);
  }
  return json.dump(2) + "\n";
}

Plan Plan::from_json(std::string_view text) {
  const Json json = parse_json(text, kOp, "plan");
  const JsonFields fields =
      edit_fields(json, nullptr, {"schema", "depth", "window", "kv", "ffn", "low_rank", "quantize"});
  if (fields.text_or("schema", kSchema) != kSchema) fields.refuse("schema", kSchema);
  Plan plan;
  if (fields.has_value("depth")) {
    const JsonFields edit = edit_fields(fields.at("depth"), "depth", {"first", "count", "refit"});
    plan.depth = {.first = edit.integer("first", 0, kMost),
                  .count = edit.integer("count", 1, kMost),
                  .refit = kRefits.read(edit, "refit", Refit::alternating)};
  }
  if (fields.has_value("window")) {
    const JsonFields edit = edit_fields(fields.at("window"), "window", {"window", "layers", "refit"});
    plan.window = {.window = edit.integer("window", 1, kMost),
                   .layers = layers_from(edit, "layers"),
                   .refit = kRefits.read(edit, "refit", Refit::least_squares)};
  }
  if (fields.has_value("kv")) {
    const JsonFields edit = edit_fields(fields.at("kv"), "kv", {"kv_heads", "method", "refit"});
    plan.kv = {.kv_heads = edit.integer("kv_heads", 1, kMost),
               .method = kMethods.read(edit, "method", KvMergeMethod::complex_pca),
               .refit = kRefits.read(edit, "refit", Refit::least_squares)};
  }
  if (fields.has_value("ffn")) {
    const JsonFields edit = edit_fields(fields.at("ffn"), "ffn", {"intermediate_size", "choice", "refit"});
    plan.ffn = {.intermediate_size = edit.integer("intermediate_size", 1, kMost),
                .choice = kChoices.read(edit, "choice", ChannelChoice::second_order),
                .refit = kRefits.read(edit, "refit", Refit::alternating)};
  }
  if (fields.has_value("low_rank")) plan.low_rank = low_rank_from(fields.at("low_rank"));
  if (fields.has_value("quantize")) plan.quantize = quantize_from(fields.at("quantize"));
  return plan;
}

void check_plan(const Plan& plan, const ModelConfig& config) {
  if (config.quantization) {
    fail<Unsupported>({.op = kOp,
                       .what = "model",
                       .expected = "weights in floats",
                       .got = "a model that is quantised already",
                       .todo = "start from the model that it was made of"});
  }
  if (config.low_rank) {
    fail<Unsupported>({.op = kOp,
                       .what = "model",
                       .expected = "linear layers of one matrix each",
                       .got = "layers of low rank",
                       .todo = "start from the model that it was made of"});
  }
  if (plan.depth) check_depth(*plan.depth, config);
  if (plan.window) check_window(*plan.window, config);
  if (plan.kv) check_kv(*plan.kv, config);
  if (plan.ffn) check_ffn(*plan.ffn, config);
  if (plan.low_rank) check_low_rank(plan);
  if (plan.quantize) check_quantize(*plan.quantize, config);
}

ModelConfig planned_config(const ModelConfig& config, const Plan& plan) {
  ModelConfig planned = config;
  if (plan.ffn) planned.intermediate_size = plan.ffn->intermediate_size;
  if (plan.kv) planned.num_key_value_heads = plan.kv->kv_heads;
  if (plan.window) {
    planned.sliding_window.resize(config.num_hidden_layers, 0);
    for (const std::size_t layer : plan.window->layers) planned.sliding_window[layer] = plan.window->window;
  }
  if (plan.depth) {
    planned.num_hidden_layers -= plan.depth->count;
    if (!planned.sliding_window.empty()) {
      const auto first = planned.sliding_window.begin() + static_cast<std::ptrdiff_t>(plan.depth->first);
      planned.sliding_window.erase(first, first + static_cast<std::ptrdiff_t>(plan.depth->count));
    }
  }
  return planned;
}

}  // namespace modicum::retrofit
