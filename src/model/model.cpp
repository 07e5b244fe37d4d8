// SPDX-License-Identifier: Apache-2.0
#include <system_error>

#include <modicum/base/error.hpp>
#include <modicum/model/model.hpp>

#include "../base/quote.hpp"
#include "chat_template.hpp"

namespace modicum {
namespace {

/// What transformers loads with its adapter would answer differently here.
void refuse_adapter(const std::filesystem::path& directory) {
  std::error_code ignored;
  if (!std::filesystem::exists(directory / "adapter_config.json", ignored)) return;
  fail<Unsupported>({.op = "model.load",
                     .what = quote(directory.string()),
                     .expected = "a model",
                     .got = "an adapter (adapter_config.json), which modicum does not apply",
                     .todo = "merge it into its model first: peft's merge_and_unload, then save_pretrained"});
}

}  // namespace

Model::State::State(Checkpoint c, const LoadOptions& options)
    : checkpoint(std::move(c)),
      transformer(checkpoint.config(), ModelWeights::load(checkpoint, options.dtype), options.threads) {}

Model Model::load(const std::filesystem::path& directory, const LoadOptions& options) {
  refuse_adapter(directory);
  return Model(std::make_shared<State>(Checkpoint::open(directory), options));
}

const Tokenizer& Model::tokenizer() const {
  std::call_once(state_->tokenizer_once,
                 [&] { state_->tokenizer = Tokenizer::load(checkpoint().directory()); });
  return *state_->tokenizer;
}

const ModelFingerprint& Model::fingerprint() const {
  std::call_once(state_->fingerprint_once, [&] {
    state_->fingerprint = {
        .weights = checkpoint().fingerprint(&transformer().pool(), {}, Rehash::when_changed),
        .tokenizer = Tokenizer::fingerprint_of(checkpoint().directory()),
        .dtype = std::string(name_of(transformer().dtype())),
        .chat_template = chat_template_hash(checkpoint().directory())};
  });
  return state_->fingerprint;
}

}  // namespace modicum
