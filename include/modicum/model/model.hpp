// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include <modicum/io/checkpoint.hpp>
#include <modicum/model/transformer.hpp>
#include <modicum/text/tokenizer.hpp>

namespace modicum {

struct LoadOptions {
  std::optional<DType> dtype = std::nullopt;  ///< empty: as stored
  std::size_t threads = 0;                    ///< 0: every processor that this process may use
};

/// Hashes of everything that decides what a model computes and how text becomes tokens.
struct ModelFingerprint {
  std::string weights;    ///< every byte of the weights and what of config.json the forward pass reads
  std::string tokenizer;  ///< tokenizer.json
  std::string dtype;      ///< in which keys and values are kept
  std::string chat_template = {};  ///< text of the chat template; empty: none
  std::string adapter = {};        ///< empty: none
  bool operator==(const ModelFingerprint&) const = default;
};

/// A Hugging Face directory, ready to run: its checkpoint (mapped), transformer and tokenizer. Copies share
/// everything.
class Model {
 public:
  /// Throws `IoError`, `FormatError` or `Unsupported` that name the file and field; `Unsupported` too for a
  /// directory with an adapter (adapter_config.json), which would be left out silently.
  static Model load(const std::filesystem::path& directory, const LoadOptions& options = {});

  const Checkpoint& checkpoint() const noexcept { return state_->checkpoint; }
  const ModelConfig& config() const noexcept { return state_->checkpoint.config(); }
  const Transformer& transformer() const noexcept { return state_->transformer; }
  /// Throws `IoError` where the directory has no tokenizer.json.
  const Tokenizer& tokenizer() const;

  /// Hashes the weights on first use, about 0.1 s per GB that is in memory, unless an earlier process did and
  /// they have not changed since (see `Rehash::when_changed`). Throws `FormatError` where
  /// tokenizer_config.json is broken.
  const ModelFingerprint& fingerprint() const;

 private:
  struct State {
    State(Checkpoint c, const LoadOptions& options);
    Checkpoint checkpoint;
    Transformer transformer;
    std::once_flag tokenizer_once;
    std::optional<Tokenizer> tokenizer;
    std::once_flag fingerprint_once;
    ModelFingerprint fingerprint;
  };
  explicit Model(std::shared_ptr<State> state) : state_(std::move(state)) {}
  std::shared_ptr<State> state_;
};

}  // namespace modicum
