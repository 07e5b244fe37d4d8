// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <vector>

#include <modicum/decode/generate.hpp>
#include <modicum/decode/step_model.hpp>
#include <modicum/model/transformer.hpp>

namespace modicum {

/// A transformer over one tree as a StepModel: states are branches, so that all that is generated from them
/// shares the keys and values of its common prefix.
class TreeStepModel {
 public:
  using State = Branch;

  TreeStepModel(const Transformer& transformer, const KvTree& tree)
      : transformer_(transformer), tree_(tree) {}

  std::size_t vocabulary_size() const { return transformer_.config().vocab_size; }

  std::vector<Branch> step(std::span<const Step<Branch>> steps, std::span<float> logits) {
    std::vector<Extension> extensions;
    extensions.reserve(steps.size());
    for (const Step<Branch>& step : steps) extensions.push_back({step.parent, {&step.token, 1}});
    std::vector<Branch> leaves = transformer_.extend(tree_, extensions);
    transformer_.logits(leaves, logits);
    return leaves;
  }

 private:
  const Transformer& transformer_;
  const KvTree& tree_;
};

static_assert(StepModel<TreeStepModel>);

/// Another way to continue a text than `generate`: a beam search, say (search/beam_writer.hpp). Gives what
/// `generate` gives, and tells the callback the text as it becomes certain.
using TextWriter = std::function<GenerateResult<Branch>(
    TreeStepModel& model, GenerateStart<Branch> start, const GenerateOptions& options,
    const Tokenizer& tokenizer, const TokenCallback& callback)>;

}  // namespace modicum
