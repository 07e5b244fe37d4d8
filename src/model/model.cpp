// SPDX-License-Identifier: Apache-2.0
#include <modicum/model/model.hpp>

namespace modicum {

Model::State::State(Checkpoint c, const LoadOptions& options)
    : checkpoint(std::move(c)),
      transformer(checkpoint.config(), ModelWeights::load(checkpoint, options.dtype), options.threads) {}

Model Model::load(const std::filesystem::path& directory, const LoadOptions& options) {
  return Model(std::make_shared<State>(Checkpoint::open(directory), options));
}

const Tokenizer& Model::tokenizer() const {
  std::call_once(state_->tokenizer_once,
                 [&] { state_->tokenizer = Tokenizer::load(checkpoint().directory()); });
  return *state_->tokenizer;
}

const ModelFingerprint& Model::fingerprint() const {
  std::call_once(state_->fingerprint_once, [&] {
    state_->fingerprint = {.weights = checkpoint().fingerprint(&transformer().pool()),
                           .tokenizer = tokenizer().fingerprint(),
                           .dtype = std::string(name_of(transformer().dtype()))};
  });
  return state_->fingerprint;
}

}  // namespace modicum
