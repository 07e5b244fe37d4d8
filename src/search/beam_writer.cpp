// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include <modicum/base/error.hpp>
#include <modicum/decode/text_stream.hpp>
#include <modicum/search/beam.hpp>
#include <modicum/search/beam_writer.hpp>

namespace modicum {
namespace {

/// Tells `callback` what the search has settled; its answer can end the search.
class StableText {
 public:
  StableText(const Tokenizer& tokenizer, const GenerateOptions& options, const TokenCallback& callback)
      : stream_(&tokenizer, options.stop), stop_ids_(options.stop_ids), callback_(callback) {}

  void push(std::span<const TokenId> ids) {
    for (const TokenId id : ids) {
      const bool is_stop = std::ranges::find(stop_ids_, id) != stop_ids_.end();
      tell(id, is_stop ? std::string() : stream_.push(id));
    }
  }
  std::string finish() {
    tell(-1, stream_.finish());
    return std::move(text_);
  }

 private:
  void tell(TokenId id, const std::string& piece) {
    text_ += piece;
    if (callback_ && !piece.empty() && !callback_({id, piece, 0.0f})) {
      fail<Cancelled>({.op = "beam", .what = "stopped by the caller"});
    }
  }

  TextStream stream_;
  std::span<const TokenId> stop_ids_;
  const TokenCallback& callback_;
  std::string text_;
};

}  // namespace

TextWriter beam_writer(BeamOptions options, std::shared_ptr<const Constraint> constraint) {
  return [options = std::move(options), constraint = std::move(constraint)](
             TreeStepModel& model, GenerateStart<Branch> start, const GenerateOptions& generation,
             const Tokenizer& tokenizer, const TokenCallback& callback) {
    BeamOptions own = options;
    own.max_new_tokens = generation.max_new_tokens;
    own.min_new_tokens = generation.min_new_tokens;
    own.stop_ids = generation.stop_ids;
    own.stop = generation.stop;
    own.sampling = generation.sampling;
    own.repetition_penalty = generation.sampling.repetition_penalty;
    own.keep_states = true;
    StableText text(tokenizer, generation, callback);
    const BeamHooks hooks{.constraint = constraint.get(),
                          .tokenizer = &tokenizer,
                          .on_stable = [&](std::span<const TokenId> ids) { text.push(ids); }};
    auto found = beam(model, std::move(start.state), start.logits, start.prompt, own, hooks);
    Hypothesis& best = found.hypotheses.front();
    return GenerateResult<Branch>{.ids = std::move(best.ids),
                                  .text = text.finish(),
                                  .log_probabilities = std::move(best.log_probabilities),
                                  .finish_reason = best.finish_reason,
                                  .state = std::move(found.states.front())};
  };
}

}  // namespace modicum
