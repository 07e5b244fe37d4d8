// SPDX-License-Identifier: Apache-2.0
#include "merge_directory.hpp"

#include <algorithm>
#include <array>
#include <iterator>
#include <optional>
#include <system_error>
#include <utility>

#include <modicum/base/error.hpp>

#include "../base/json.hpp"
#include "../base/quote.hpp"
#include "../base/text_file.hpp"
#include "../io/copy_files.hpp"

namespace modicum::tune {
namespace {

namespace fs = std::filesystem;
using OrderedJson = nlohmann::ordered_json;

constexpr std::string_view kOp = "merge";
constexpr const char* kTokenizerFiles[] = {"tokenizer.json",
                                           "tokenizer.model",
                                           "tokenizer_config.json",
                                           "special_tokens_map.json",
                                           "added_tokens.json",
                                           "vocab.json",
                                           "merges.txt",
                                           "vocab.txt"};
constexpr const char* kChatFiles[] = {"chat_template.jinja", "chat_template.json", "generation_config.json"};
constexpr const char* kSpecialIds[] = {"eos_token_id", "bos_token_id", "pad_token_id"};

OrderedJson read_json(const fs::path& path) {
  const std::string text = read_text(path);
  parse_json(text, kOp, quote(path.string()));  // depth and syntax, with the file's name in the error
  OrderedJson json = OrderedJson::parse(text);
  if (!json.is_object()) {
    fail<FormatError>(
        {.op = kOp, .what = quote(path.string()), .expected = "a JSON object", .got = "another value"});
  }
  return json;
}

std::string text_of(const OrderedJson& json) {
  return json.dump(2, ' ', false, OrderedJson::error_handler_t::replace) + "\n";
}

/// Ids of one model's tokens in the result.
class IdMap {
 public:
  IdMap(const RowPlan& rows, std::size_t model) : rows_(rows), model_(model) {}

  std::optional<TokenId> operator()(std::int64_t id) const {
    if (!rows_.mapped()) return static_cast<TokenId>(id);
    const auto& row_of = rows_.row_of[model_];
    const auto found = std::ranges::find(row_of, id);
    if (found == row_of.end()) return std::nullopt;
    return static_cast<TokenId>(found - row_of.begin());
  }

  /// An id or a list of them. Empty where one is not in the result.
  std::optional<OrderedJson> operator()(const OrderedJson& ids) const {
    if (ids.is_array()) {
      OrderedJson all = OrderedJson::array();
      for (const OrderedJson& one : ids) {
        const auto mapped = (*this)(one);
        if (!mapped) return std::nullopt;
        all.push_back(*mapped);
      }
      return all;
    }
    if (!ids.is_number_integer()) return ids;
    const std::optional<TokenId> id = (*this)(ids.get<std::int64_t>());
    return id ? std::optional(OrderedJson(*id)) : std::nullopt;
  }

 private:
  const RowPlan& rows_;
  std::size_t model_;
};

[[noreturn]] void refuse_end(const Source& chat, const OrderedJson& ids) {
  fail({.op = kOp,
        .what = "eos_token_id of " + quote(chat.path),
        .expected = "tokens of the result",
        .got = ids.dump(),
        .todo = "let the result have them: vocabulary \"all\", or tokenizer " + quote(chat.path)});
}

/// Ids of special tokens as `chat` has them, in the result's numbers.
void map_special_ids(OrderedJson& json, const OrderedJson& from, const Source& chat, const IdMap& map) {
  for (const char* const field : kSpecialIds) {
    if (!from.contains(field) || from[field].is_null()) continue;
    const auto mapped = map(from[field]);
    if (mapped) {
      json[field] = *mapped;
    } else if (std::string_view(field) == kSpecialIds[0]) {
      refuse_end(chat, from[field]);
    }
  }
}

/// The entry of an added token in one of the models' tokenizer.json.
OrderedJson added_entry(const std::vector<Source>& sources, const std::string& token) {
  for (const Source& source : sources) {
    if (!source.vocabulary ||
        std::ranges::find(source.vocabulary->added, token) == source.vocabulary->added.end()) {
      continue;
    }
    for (const OrderedJson& entry : read_json(fs::path(source.path) / "tokenizer.json")["added_tokens"]) {
      if (entry.value("content", "") == token) return entry;
    }
  }
  return {{"content", token}, {"single_word", false}, {"lstrip", false},
          {"rstrip", false},  {"normalized", false},  {"special", true}};
}

}  // namespace

MergeDirectory::MergeDirectory(const MergePlan& plan, const MergeInputs& inputs) : inputs_(inputs) {
  const fs::path from = source(inputs.foundation()).path;
  std::error_code code;
  for (const auto& entry : fs::directory_iterator(from, code)) {
    const std::string name = entry.path().filename().string();
    const bool own = std::ranges::find(kTokenizerFiles, name) != std::end(kTokenizerFiles) ||
                     std::ranges::find(kChatFiles, name) != std::end(kChatFiles) || name == "config.json" ||
                     name == "merge.json" || name == "retrofit.json" || name == "retrofit.html";
    if (own || is_weights(name) || name.starts_with(".") || !entry.is_regular_file(code)) continue;
    copies_[name] = entry.path();
  }
  plan_tokenizer();
  plan_chat();
  plan_config(plan);
}

void MergeDirectory::plan_tokenizer() {
  // With one vocabulary, the tokenizer of the model that chats also knows which of its tokens are special.
  const bool mapped = inputs_.rows().mapped();
  const fs::path from = source(mapped ? inputs_.tokenizer() : inputs_.chat()).path;
  for (const char* const name : kTokenizerFiles) {
    if (is_there(from / name)) copies_[name] = from / name;
  }
  if (!inputs_.rows().added.empty()) add_tokens();
}

void MergeDirectory::add_tokens() {
  const fs::path from = source(inputs_.tokenizer()).path;
  OrderedJson tokenizer = read_json(from / "tokenizer.json");
  const bool has_config = is_there(from / "tokenizer_config.json");
  OrderedJson config = has_config ? read_json(from / "tokenizer_config.json") : OrderedJson::object();
  const RowPlan& rows = inputs_.rows();
  for (std::size_t i = 0; i < rows.added.size(); ++i) {
    OrderedJson entry = added_entry(inputs_.sources(), rows.added[i]);
    entry["id"] = rows.added_ids[i];
    if (config.contains("added_tokens_decoder")) {
      OrderedJson described = entry;
      described.erase("id");
      config["added_tokens_decoder"][std::to_string(rows.added_ids[i])] = std::move(described);
    }
    tokenizer["added_tokens"].push_back(std::move(entry));
  }
  // transformers wants them in the order of their ids.
  auto& all = tokenizer["added_tokens"].get_ref<OrderedJson::array_t&>();
  std::ranges::stable_sort(all, {},
                           [](const OrderedJson& entry) { return entry.value("id", std::int64_t{0}); });
  texts_["tokenizer.json"] = text_of(tokenizer);
  if (has_config) texts_["tokenizer_config.json"] = text_of(config);
  copies_.erase("added_tokens.json");  // tokenizer.json says it all, and this would not know the new ones
}

void MergeDirectory::plan_chat() {
  const Source& chat = source(inputs_.chat());
  const fs::path from = chat.path;
  for (const char* const name : kChatFiles) {
    if (is_there(from / name)) copies_[name] = from / name;
  }
  if (!inputs_.rows().mapped()) return;
  const IdMap map(inputs_.rows(), inputs_.chat());
  if (is_there(from / "generation_config.json")) {
    OrderedJson generation = read_json(from / "generation_config.json");
    map_special_ids(generation, OrderedJson(generation), chat, map);
    texts_["generation_config.json"] = text_of(generation);
  }
  if (inputs_.chat() == inputs_.tokenizer() || !is_there(from / "tokenizer_config.json")) return;
  const OrderedJson theirs = read_json(from / "tokenizer_config.json");
  const fs::path own = fs::path(source(inputs_.tokenizer()).path) / "tokenizer_config.json";
  OrderedJson config = texts_.contains("tokenizer_config.json")
                           ? OrderedJson::parse(texts_["tokenizer_config.json"])
                       : is_there(own) ? read_json(own)
                                       : OrderedJson::object();
  for (const char* const field : {"chat_template", "eos_token", "pad_token"}) {
    if (theirs.contains(field) && !theirs[field].is_null()) config[field] = theirs[field];
  }
  if (is_there(from / "chat_template.jinja")) config.erase("chat_template");
  texts_["tokenizer_config.json"] = text_of(config);
}

void MergeDirectory::plan_config(const MergePlan& plan) {
  const Source& like = source(inputs_.foundation());
  const Source& chat = source(inputs_.chat());
  const fs::path path = fs::path(like.path) / "config.json";
  OrderedJson config = read_json(path);
  const OrderedJson before = config;
  if (inputs_.rows().rows != like.checkpoint.config().vocab_size) config["vocab_size"] = inputs_.rows().rows;
  if (inputs_.tied() != like.checkpoint.config().tie_word_embeddings)
    config["tie_word_embeddings"] = inputs_.tied();
  if (plan.dtype) {
    const char* const name = *plan.dtype == DType::f32   ? "float32"
                             : *plan.dtype == DType::f16 ? "float16"
                                                         : "bfloat16";
    config[config.contains("dtype") ? "dtype" : "torch_dtype"] = name;
  }
  if (inputs_.chat() != inputs_.foundation() || inputs_.rows().mapped()) {
    map_special_ids(config, read_json(fs::path(chat.path) / "config.json"), chat,
                    IdMap(inputs_.rows(), inputs_.chat()));
  }
  if (config == before) {
    copies_["config.json"] = path;
  } else {
    texts_["config.json"] = text_of(config);
  }
}

void MergeDirectory::write(const fs::path& to) const {
  for (const auto& [name, path] : copies_) {
    if (!texts_.contains(name)) copy_verbatim(path, to / name);
  }
  for (const auto& [name, text] : texts_) write_text(to / name, text);
}

}  // namespace modicum::tune
