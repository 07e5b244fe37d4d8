// SPDX-License-Identifier: Apache-2.0
#include <modicum/model/model.hpp>

#include <modicum/base/hash.hpp>

namespace modicum {

Model::State::State(Checkpoint c, const LoadOptions& options)
    : checkpoint(std::move(c)),
      transformer(checkpoint.config(), ModelWeights::load(checkpoint, options.dtype), options.threads) {}

Model Model::load(const std::filesystem::path& directory, const LoadOptions& options) {
  return Model(std::make_shared<State>(Checkpoint::open(directory), options));
}

const Tokenizer& Model::tokenizer() const {
  std::call_once(state_->tokenizer_once, [&] { state_->tokenizer = Tokenizer::load(checkpoint().directory()); });
  return *state_->tokenizer;
}

const std::string& Model::fingerprint() const {
  std::call_once(state_->fingerprint_once, [&] {
    state_->fingerprint = hash128_hex(checkpoint().fingerprint(&transformer().pool()) + "|" +
                                      std::string(name_of(transformer().dtype())) + "|" + tokenizer().fingerprint());
  });
  return state_->fingerprint;
}

}  // namespace modicum
