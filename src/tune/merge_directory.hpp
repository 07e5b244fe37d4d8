// SPDX-License-Identifier: Apache-2.0
// Everything of a merged model's directory but its weights.
#pragma once

#include <filesystem>
#include <map>
#include <string>

#include <modicum/tune/merge_plan.hpp>

#include "merge_inputs.hpp"

namespace modicum::tune {

/// config.json is that of the model that is built upon, with vocabulary, dtype and head as they became, and
/// the ends of turn of the plan's `chat`. Tokenizer files are those of the model whose tokens the result has,
/// chat template and generation settings those of `chat`; where rows were matched by token, ids in them are
/// the result's. All else is from the model that is built upon.
class MergeDirectory {
 public:
  /// Reads all that is read. Throws `FormatError` for broken files, and `InvalidArgument` where an end of
  /// turn of `chat` is no token of the result.
  MergeDirectory(const MergePlan& plan, const MergeInputs& inputs);

  void write(const std::filesystem::path& to) const;

 private:
  void plan_config(const MergePlan& plan);
  void plan_tokenizer();
  void plan_chat();
  void add_tokens();
  const Source& source(std::size_t index) const { return inputs_.sources()[index]; }

  const MergeInputs& inputs_;
  std::map<std::string, std::filesystem::path> copies_;  ///< by name
  std::map<std::string, std::string> texts_;             ///< likewise; go before copies
};

}  // namespace modicum::tune
