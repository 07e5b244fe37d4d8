// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <modicum/tensor/dtype.hpp>
#include <modicum/tune/dare.hpp>
#include <modicum/tune/ties.hpp>

namespace modicum::tune {

enum class Method {
  linear,
  slerp,
  task_arithmetic,
  ties,
  magnitude_prune,
  dare_linear,
  dare_ties,
  breadcrumbs,
  breadcrumbs_ties,
};
/// "linear", …, as mergekit spells them.
std::string_view name_of(Method method);
/// Whether the method combines differences from a base.
bool needs_base(Method method);

/// A number that may be another one for other tensors: mergekit's parameter with filters and gradients. The
/// first rule that fits a tensor's name counts.
class Setting {
 public:
  struct Rule {
    std::string filter;          ///< part of the names that it is for; "" or "*": all
    std::vector<double> values;  ///< one, or a polyline over the layers from the first to the last
  };

  Setting() = default;
  Setting(double value) : rules_{{"", {value}}} {}  // a number is a setting
  explicit Setting(std::vector<Rule> rules) : rules_(std::move(rules)) {}

  /// `depth`: 0 at the first layer and for tensors of none, 1 at the last. Empty where no rule fits.
  std::optional<double> at(std::string_view tensor, double depth) const;
  const std::vector<Rule>& rules() const noexcept { return rules_; }

 private:
  std::vector<Rule> rules_;
};

/// A model that goes in.
struct MergeInput {
  std::string model;    ///< a Hugging Face directory
  std::string adapter;  ///< a PEFT LoRA directory that is applied to it first; empty: none
  Setting weight = 1.0;
  Setting density = 1.0;
  Setting gamma = 0.01;  ///< breadcrumbs: the share of largest differences that go
};

/// Rows of embedding and head where vocabularies differ.
enum class VocabularyRule {
  same,   ///< refused, with what differs
  match,  ///< rows of one token belong together; the result has the tokens of one model
  all,    ///< as `match`, and added tokens of other models are added to them
};

/// What is merged, and how: a value that JSON holds.
struct MergePlan {
  Method method = Method::task_arithmetic;
  Definition definition = Definition::mergekit;
  std::string base;  ///< that differences are taken from; of `slerp` the end at t = 0
  std::string base_adapter;
  std::string onto;  ///< that they are added to; empty: the base
  std::vector<MergeInput> models;
  Setting lambda = 1.0;
  Setting t = 0.5;                 ///< of `slerp`
  std::optional<bool> normalize;   ///< empty: as the method's definition says
  std::optional<Rescale> rescale;  ///< likewise
  std::uint64_t seed = 0;          ///< of random masks
  std::optional<DType> dtype;  ///< of the result; empty: each tensor's own in the model that is built upon
  VocabularyRule vocabulary = VocabularyRule::same;
  std::string tokenizer;  ///< the model whose tokens the result has; empty: the one that is built upon
  /// Tokens that stand for each other: of the result, and of models that do not have that one.
  std::map<std::string, std::string> tokens;
  std::string chat;  ///< whose chat template, ends of turn and generation settings the result has
  /// A head of its own where the models' are partly tied to the embedding.
  bool untie = false;

  /// The model that the result is like but for its weights.
  const std::string& foundation() const;
  std::string to_json() const;
};

/// Throws `FormatError` for JSON that is no plan, naming the field; whether it fits the models is seen when
/// they are opened.
MergePlan parse_merge_plan(std::string_view json);

/// Throws `InvalidArgument` for a plan that no models could fit: too few of them, a base that is missing, a
/// density outside 0 to 1.
void check_merge_plan(const MergePlan& plan);

}  // namespace modicum::tune
