// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstddef>
#include <span>
#include <vector>

#include <modicum/text/tokenizer.hpp>

namespace modicum {

/// Reads one more token after what `parent` has read.
template <class State>
struct Step {
  State parent;
  TokenId token;
};

/// Anything that continues a text token by token: a transformer on the tree of keys and values, an n-gram
/// model, a toy in a test.
///
/// `State` is a copyable handle on what has been read so far; when its last copy goes, its memory may go.
/// States that grew from one parent share what they have in common, so branching costs a copy of a handle.
///
/// `step(steps, logits)` reads all steps in one pass. It returns one new state a step, in their order, and
/// writes the logits of each one's next token to `logits`: f32 [steps, vocabulary], row-major. A row must not
/// depend on what else is in the batch. It may throw; the parents are then as they were.
template <class M>
concept StepModel = requires(M& model, std::span<const Step<typename M::State>> steps,
                             std::span<float> logits) {
  typename M::State;
  requires std::copyable<typename M::State>;
  { model.vocabulary_size() } -> std::convertible_to<std::size_t>;
  { model.step(steps, logits) } -> std::same_as<std::vector<typename M::State>>;
};

}  // namespace modicum
