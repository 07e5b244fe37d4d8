// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <optional>
#include <system_error>
#include <utility>

#include <modicum/base/hash.hpp>

#include "../base/json.hpp"
#include "checkpoint_state.hpp"
#include "digest_store.hpp"

namespace modicum {
namespace {

constexpr std::uint64_t kBlock = std::uint64_t{16} << 20;

/// Only what the type reads, so that a leftover field makes no difference.
Json canonical_rope(const RopeConfig& rope) {
  Json json = {{"theta", rope.theta}};
  switch (rope.type) {
    case RopeType::standard:
      break;
    case RopeType::linear:
      json["linear"] = {rope.factor};
      break;
    case RopeType::llama3:
      json["llama3"] = {rope.factor, rope.original_max_position_embeddings, rope.low_freq_factor,
                        rope.high_freq_factor};
      break;
    case RopeType::yarn:
      json["yarn"] = {rope.factor,    rope.original_max_position_embeddings,
                      rope.beta_fast, rope.beta_slow,
                      rope.truncate,  rope.attention_factor};
      break;
  }
  return json;
}

/// The fields that the forward pass reads; not the special tokens, the stored dtype's spelling or the longest
/// context, which change no logit. nlohmann sorts the keys.
std::string canonical_config(const ModelConfig& config) {
  return Json{{"model_type", config.model_type},
              {"hidden_size", config.hidden_size},
              {"intermediate_size", config.intermediate_size},
              {"num_hidden_layers", config.num_hidden_layers},
              {"num_attention_heads", config.num_attention_heads},
              {"num_key_value_heads", config.num_key_value_heads},
              {"head_dim", config.head_dim},
              {"vocab_size", config.vocab_size},
              {"rms_norm_eps", config.rms_norm_eps},
              {"qkv_bias", config.qkv_bias},
              {"o_bias", config.o_bias},
              {"mlp_bias", config.mlp_bias},
              {"qk_norm", config.qk_norm},
              {"tie_word_embeddings", config.tie_word_embeddings},
              {"rope", canonical_rope(config.rope)},
              {"sliding_window", config.sliding_window}}
      .dump();
}

struct Block {
  std::size_t tensor;
  std::span<const std::byte> bytes;
};

std::vector<Block> blocks_of(const Checkpoint& checkpoint, const std::vector<std::string>& names) {
  std::vector<Block> blocks;
  for (std::size_t i = 0; i < names.size(); ++i) {
    const std::span<const std::byte> bytes = checkpoint.bytes(names[i]);
    for (std::uint64_t begin = 0; begin < bytes.size(); begin += kBlock) {
      blocks.push_back({i, bytes.subspan(begin, std::min<std::uint64_t>(kBlock, bytes.size() - begin))});
    }
  }
  return blocks;
}

/// The hash of every block, in order. The progress callback is called from the calling thread only, between
/// rounds.
std::vector<std::string> hash_blocks(const std::vector<Block>& blocks, ThreadPool* pool,
                                     const Progress& progress) {
  std::vector<std::string> hashes(blocks.size());
  const std::size_t round = 16 * (pool != nullptr ? pool->size() : 1);
  for (std::size_t begin = 0; begin < blocks.size(); begin += round) {
    report(progress, "fingerprint", begin, blocks.size());
    const std::size_t count = std::min(round, blocks.size() - begin);
    const auto hash = [&](std::size_t i) { hashes[begin + i] = hash128_hex(blocks[begin + i].bytes); };
    if (pool != nullptr) {
      pool->run(count, hash);
    } else {
      for (std::size_t i = 0; i < count; ++i) hash(i);
    }
  }
  report(progress, "fingerprint", blocks.size(), blocks.size());
  return hashes;
}

std::string hash_all(const Checkpoint& checkpoint, ThreadPool* pool, const Progress& progress) {
  const std::vector<std::string> all = checkpoint.names();
  const std::vector<Block> blocks = blocks_of(checkpoint, all);
  const std::vector<std::string> hashes = hash_blocks(blocks, pool, progress);
  Json tensors = Json::array();
  for (const std::string& name : all) {
    const TensorInfo& tensor = checkpoint.info(name);
    tensors.push_back({name, tensor.dtype, tensor.shape, Json::array()});
  }
  for (std::size_t i = 0; i < blocks.size(); ++i) tensors[blocks[i].tensor][3].push_back(hashes[i]);
  return hash128_hex(canonical_config(checkpoint.config()) + "\n" + tensors.dump());
}

std::int64_t now_ns() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

/// Whether a later write to these files is sure to show in their times. What changed within the last two
/// seconds could change again within one tick of a coarse clock (git calls it racily clean).
bool has_settled(const std::vector<SafetensorsFile>& files, std::int64_t now) {
  constexpr std::int64_t kTick = 2'000'000'000;
  return std::ranges::all_of(
      files, [&](const SafetensorsFile& file) { return file.file().identity().changed_ns < now - kTick; });
}

}  // namespace

/// What a fingerprint follows from without reading the weights: which files they are and when they were last
/// written, which of their tensors count, and the configuration. Empty where a path leads elsewhere by now,
/// or to a file that was written to since it was mapped.
std::optional<std::string> Checkpoint::State::identity() const {
  Json json{{"fingerprint", 1}, {"config", canonical_config(config)}, {"files", Json::array()}};
  for (const SafetensorsFile& file : files) {
    std::error_code error;
    const auto path = std::filesystem::canonical(file.file().path(), error);
    const FileIdentity& id = file.file().identity();
    if (error || FileIdentity::of(path) != id) return std::nullopt;
    json["files"].push_back({path.string(), id.device, id.inode, id.size, id.modified_ns, id.changed_ns});
  }
  Json tensors = Json::array();
  for (const auto& [name, file] : file_of) tensors.push_back({name, file});
  json["tensors"] = hash128_hex(tensors.dump());
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string Checkpoint::fingerprint(ThreadPool* pool, const Progress& progress, Rehash rehash) const {
  if (rehash == Rehash::always) return hash_all(*this, pool, progress);
  const std::int64_t begin = now_ns();
  const DigestStore store = DigestStore::of_user();
  const auto identity = state_->identity();
  if (identity) {
    if (auto known = store.find(*identity)) return *std::move(known);
  }
  std::string digest = hash_all(*this, pool, progress);
  if (identity && has_settled(files(), begin) && state_->identity() == identity) {
    store.keep(*identity, digest);
  }
  return digest;
}

}  // namespace modicum
