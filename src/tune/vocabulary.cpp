// SPDX-License-Identifier: Apache-2.0
#include "vocabulary.hpp"

#include <algorithm>
#include <set>
#include <utility>

#include <modicum/base/error.hpp>

#include "../base/json.hpp"
#include "../base/quote.hpp"
#include "../base/text_file.hpp"

namespace modicum::tune {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kOp = "vocabulary";
constexpr std::uint64_t kMostTokens = std::uint64_t{1} << 24;
constexpr std::size_t kNamed = 12;  // of many tokens, in an error

class Reader {
 public:
  Reader(const Json& json, const std::string& where) : fields_(json, kOp, where + ": ") {}

  Vocabulary read() {
    const Json& model = fields_.at("model");
    if (!model.is_object() || !model.contains("vocab")) fields_.refuse("model", "an object with a vocab");
    const Json& vocab = model.at("vocab");
    if (vocab.is_object()) {
      for (const auto& [name, id] : vocab.items()) add(name, id);
    } else if (vocab.is_array()) {  // [[piece, score], …]
      for (std::size_t i = 0; i < vocab.size(); ++i) {
        if (!vocab[i].is_array() || vocab[i].empty() || !vocab[i][0].is_string()) refuse();
        add(vocab[i][0].get<std::string>(), Json(i));
      }
    } else {
      refuse();
    }
    read_added();
    return std::move(vocabulary_);
  }

 private:
  [[noreturn]] void refuse() const { fields_.refuse("model", "a vocab of tokens and ids"); }

  void add(const std::string& name, const Json& id) {
    if (!id.is_number_unsigned() || id.get<std::uint64_t>() >= kMostTokens) refuse();
    const auto at = id.get<std::size_t>();
    if (at >= vocabulary_.names.size()) vocabulary_.names.resize(at + 1);
    vocabulary_.names[at] = name;
    vocabulary_.ids[name] = static_cast<TokenId>(at);
  }

  void read_added() {
    if (!fields_.has_value("added_tokens")) return;
    const Json& added = fields_.at("added_tokens");
    if (!added.is_array()) fields_.refuse("added_tokens", "an array");
    std::map<std::size_t, std::string> by_id;
    for (const Json& token : added) {
      const JsonFields one(token, kOp, fields_.name("added_tokens: "));
      add(one.text("content"), one.at("id"));
      by_id[token.at("id").get<std::size_t>()] = one.text("content");
    }
    for (auto& [id, name] : by_id) vocabulary_.added.push_back(std::move(name));
  }

  JsonFields fields_;
  Vocabulary vocabulary_;
};

std::string listed(const std::vector<std::string>& names) {
  std::string text;
  for (std::size_t i = 0; i < std::min(names.size(), kNamed); ++i)
    text += (i == 0 ? "" : ", ") + quote(names[i]);
  if (names.size() > kNamed) text += " and " + std::to_string(names.size() - kNamed) + " more";
  return text;
}

/// Ids that have another token in `b` than in `a`, or none in one of them.
std::vector<std::string> other_tokens(const Vocabulary& a, const Vocabulary& b) {
  std::vector<std::string> found;
  for (std::size_t i = 0; i < std::max(a.names.size(), b.names.size()); ++i) {
    const std::string& one = i < a.names.size() ? a.names[i] : std::string();
    const std::string& other = i < b.names.size() ? b.names[i] : std::string();
    if (one != other) found.push_back(one.empty() ? other : one);
  }
  return found;
}

}  // namespace

std::optional<Vocabulary> Vocabulary::read(const fs::path& directory) {
  const fs::path path = directory / "tokenizer.json";
  if (!is_there(path)) return std::nullopt;
  const Json json = parse_json(read_text(path), kOp, quote(path.string()));
  return Reader(json, quote(path.string())).read();
}

std::optional<TokenId> Vocabulary::id_of(const std::string& name) const {
  const auto found = ids.find(name);
  return found == ids.end() ? std::nullopt : std::optional(found->second);
}

std::string difference(const std::vector<RowsOf>& models) {
  const RowsOf& first = models.front();
  for (const RowsOf& other : models) {
    const bool one_file = !other.fingerprint.empty() && other.fingerprint == first.fingerprint;
    if (!one_file && first.vocabulary != nullptr && other.vocabulary != nullptr) {
      const std::vector<std::string> tokens = other_tokens(*first.vocabulary, *other.vocabulary);
      if (!tokens.empty()) {
        return std::to_string(tokens.size()) + " tokens that " + quote(first.name) + " and " +
               quote(other.name) + " do not have alike: " + listed(tokens);
      }
    }
    if (other.rows != first.rows) {
      return std::to_string(first.rows) + " rows in " + quote(first.name) + ", " +
             std::to_string(other.rows) + " in " + quote(other.name);
    }
  }
  return {};
}

RowPlan match_rows(const std::vector<RowsOf>& models, std::size_t result, bool all,
                   const std::map<std::string, std::string>& tokens) {
  for (const RowsOf& model : models) {
    if (model.vocabulary != nullptr) continue;
    fail({.op = "merge",
          .what = "tokens of " + quote(model.name),
          .expected = "a tokenizer.json, so that rows can be matched by token",
          .got = "none"});
  }
  const Vocabulary& own = *models[result].vocabulary;
  std::vector<std::string> names = own.names;
  names.resize(std::max(names.size(), models[result].rows));
  RowPlan plan;
  std::set<std::string> dropped;
  std::size_t next = 0;
  for (const RowsOf& model : models) {
    const std::set<std::string> added(model.vocabulary->added.begin(), model.vocabulary->added.end());
    for (const std::string& name : model.vocabulary->names) {
      if (name.empty() || own.ids.contains(name)) continue;
      if (!all || !added.contains(name)) {
        dropped.insert(name);
        continue;
      }
      if (std::ranges::find(plan.added, name) != plan.added.end()) continue;
      while (next < names.size() && !names[next].empty()) ++next;
      if (next == names.size()) names.emplace_back();
      names[next] = name;
      plan.added.push_back(name);
      plan.added_ids.push_back(static_cast<TokenId>(next));
    }
  }
  plan.rows = names.size();
  plan.dropped.assign(dropped.begin(), dropped.end());
  std::vector<char> partial(plan.rows, 0);
  for (const RowsOf& model : models) {
    std::vector<std::int64_t>& rows = plan.row_of.emplace_back(plan.rows, RowPlan::kAbsent);
    for (std::size_t r = 0; r < plan.rows; ++r) {
      if (names[r].empty()) {  // padding: only where it is padding there too
        const bool padding = r >= model.vocabulary->names.size() || model.vocabulary->names[r].empty();
        if (padding && r < model.rows) rows[r] = static_cast<std::int64_t>(r);
        continue;
      }
      std::optional<TokenId> id = model.vocabulary->id_of(names[r]);
      if (!id && tokens.contains(names[r])) id = model.vocabulary->id_of(tokens.at(names[r]));
      if (id && static_cast<std::size_t>(*id) < model.rows) {
        rows[r] = *id;
      } else {
        partial[r] = 1;
      }
    }
  }
  for (std::size_t r = 0; r < plan.rows; ++r) {
    if (partial[r] != 0) plan.partial.push_back(names[r]);
  }
  return plan;
}

}  // namespace modicum::tune
