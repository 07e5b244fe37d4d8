// SPDX-License-Identifier: Apache-2.0
// Which row of a model's embedding and head stands for which row of the result.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include <modicum/text/tokenizer.hpp>

namespace modicum::tune {

/// The tokens of a tokenizer.json, added ones included, by name and by id. Made of the file's text alone, so
/// any kind of tokenizer that names its tokens will do.
struct Vocabulary {
  std::unordered_map<std::string, TokenId> ids;
  std::vector<std::string> names;  ///< by id; "" where no token has it
  std::vector<std::string> added;  ///< names of added tokens, in the order of their ids

  /// Empty where the directory has no tokenizer.json. Throws `FormatError`.
  static std::optional<Vocabulary> read(const std::filesystem::path& directory);
  std::optional<TokenId> id_of(const std::string& name) const;
};

/// Rows of the result and where they are in each model.
struct RowPlan {
  static constexpr std::int64_t kAbsent = -1;

  std::size_t rows = 0;
  /// By model, then by row of the result. Empty: every row is where it is in the result.
  std::vector<std::vector<std::int64_t>> row_of;
  std::vector<std::string> added;    ///< tokens that the result has and its tokenizer did not, with
  std::vector<TokenId> added_ids;    ///< their ids
  std::vector<std::string> partial;  ///< tokens of the result that some model lacks
  std::vector<std::string> dropped;  ///< tokens that some model has and the result does not
  bool unchecked = false;            ///< a model has no tokenizer.json: rows of equal number were believed

  bool mapped() const noexcept { return !row_of.empty(); }
};

/// A model as far as its rows go.
struct RowsOf {
  std::string name;
  const Vocabulary* vocabulary = nullptr;  ///< null: no tokenizer.json
  std::size_t rows = 0;
  std::string fingerprint;  ///< of tokenizer.json
};

/// Whether equal rows stand for equal tokens in all models, and what differs where they do not: text for an
/// error, empty where they are the same.
std::string difference(const std::vector<RowsOf>& models);

/// Rows of one token belong together. `result` is the model whose tokens the result has; with `all`, added
/// tokens of the others follow them, in rows that no token has or behind the last. `tokens`: names that stand
/// for each other, of the result and of models that lack it.
RowPlan match_rows(const std::vector<RowsOf>& models, std::size_t result, bool all,
                   const std::map<std::string, std::string>& tokens);

}  // namespace modicum::tune
