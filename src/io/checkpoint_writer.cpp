// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdio>
#include <optional>
#include <system_error>
#include <utility>

#include <modicum/base/atomic_file.hpp>
#include <modicum/io/checkpoint.hpp>

#include "../base/json.hpp"
#include "../base/quote.hpp"
#include "checkpoint_state.hpp"
#include "safetensors_header.hpp"

namespace modicum {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kOp = "checkpoint.write";
constexpr std::size_t kAlignment = 64;  // a cache line, and the widest vector register

std::string shard_name(std::size_t index, std::size_t count) {
  if (count == 1) return kWeightsFile;
  char name[64];
  std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", index + 1, count);
  return name;
}

void refuse_existing_weights(const fs::path& directory) {
  for (const auto& entry : fs::directory_iterator(directory)) {
    const std::string name = entry.path().filename().string();
    if (name != kIndexFile && !(name.starts_with("model") && name.ends_with(".safetensors"))) continue;
    fail({.op = kOp,
          .what = quote(directory.string()),
          .expected = "a directory without weights",
          .got = quote(name),
          .todo = "choose another directory, or remove the old weights first"});
  }
}

void prepare_directory(const fs::path& directory) {
  std::error_code code;
  fs::create_directories(directory, code);
  if (code || !fs::is_directory(directory, code)) {
    fail<IoError>({.op = kOp,
                   .what = quote(directory.string()),
                   .expected = "a directory, or room to create one",
                   .got = code ? code.message() : "a file"});
  }
}

std::uint64_t size_of_spec(const TensorSpec& spec) {
  return bytes_of(spec.dtype, spec.shape).bytes;
}

/// In order, a new shard where the next tensor would pass the limit: transformers' rule.
std::vector<std::vector<TensorSpec>> split(std::vector<TensorSpec> specs, std::uint64_t shard_bytes) {
  std::vector<std::vector<TensorSpec>> shards(1);
  std::uint64_t filled = 0;
  for (TensorSpec& spec : specs) {
    const std::uint64_t size = size_of_spec(spec);
    if (!shards.back().empty() && (filled > shard_bytes || size > shard_bytes - filled)) {
      shards.emplace_back();
      filled = 0;
    }
    filled += size;
    shards.back().push_back(std::move(spec));
  }
  return shards;
}

std::string index_json(const std::vector<std::vector<TensorSpec>>& shards) {
  std::uint64_t total_size = 0;
  std::uint64_t total_parameters = 0;
  Json weight_map = Json::object();
  for (std::size_t i = 0; i < shards.size(); ++i) {
    for (const TensorSpec& spec : shards[i]) {
      const std::uint64_t size = size_of_spec(spec);
      total_size += size;
      total_parameters += size * 8 / safetensors_bits(spec.dtype);
      weight_map[spec.name] = shard_name(i, shards.size());
    }
  }
  const Json metadata = {{"total_parameters", total_parameters}, {"total_size", total_size}};
  return Json{{"metadata", metadata}, {"weight_map", std::move(weight_map)}}.dump(2) + "\n";
}

}  // namespace

struct CheckpointWriter::State {
  fs::path directory;
  std::vector<std::vector<TensorSpec>> shards;
  std::map<std::string, std::string> metadata;
  std::uint64_t remaining = 0;
  /// All stay open until `commit`, so that their temporaries go if it never comes. The last is being filled.
  std::vector<std::unique_ptr<SafetensorsWriter>> writers = {};

  void open_next() {
    const std::size_t i = writers.size();
    writers.push_back(std::make_unique<SafetensorsWriter>(directory / shard_name(i, shards.size()), shards[i],
                                                          metadata, kAlignment));
  }
};

CheckpointWriter::CheckpointWriter(fs::path directory, std::vector<TensorSpec> specs,
                                   std::uint64_t shard_bytes, std::map<std::string, std::string> metadata) {
  const std::uint64_t total = check_specs(specs);
  prepare_directory(directory);
  refuse_existing_weights(directory);
  state_ = std::make_unique<State>(
      State{std::move(directory), split(std::move(specs), shard_bytes), std::move(metadata), total});
  state_->open_next();
}

CheckpointWriter::~CheckpointWriter() = default;
CheckpointWriter::CheckpointWriter(CheckpointWriter&&) noexcept = default;
CheckpointWriter& CheckpointWriter::operator=(CheckpointWriter&&) noexcept = default;

void CheckpointWriter::append(std::span<const std::byte> bytes) {
  if (bytes.size() > state_->remaining) {
    fail({.op = kOp,
          .what = "weights of " + quote(state_->directory.string()),
          .expected = "at most " + std::to_string(state_->remaining) + " bytes more",
          .got = std::to_string(bytes.size())});
  }
  while (true) {
    SafetensorsWriter& writer = *state_->writers.back();
    const std::size_t count = std::min<std::uint64_t>(bytes.size(), writer.remaining());
    writer.append(bytes.first(count));
    state_->remaining -= count;
    bytes = bytes.subspan(count);
    if (writer.remaining() != 0 || state_->writers.size() == state_->shards.size()) return;
    state_->open_next();
  }
}

void CheckpointWriter::commit() {
  append({});  // a shard of empty tensors is opened by no byte of its own
  if (state_->remaining != 0) {
    fail({.op = kOp,
          .what = "weights of " + quote(state_->directory.string()),
          .expected = std::to_string(state_->remaining) + " bytes more",
          .got = "commit"});
  }
  refuse_existing_weights(state_->directory);
  std::optional<AtomicFile> index;
  if (state_->shards.size() > 1) {
    const std::string text = index_json(state_->shards);
    index.emplace(state_->directory / kIndexFile);
    index->write(std::as_bytes(std::span(text)));
  }
  for (const auto& writer : state_->writers) writer->commit();
  if (index) index->commit();
}

}  // namespace modicum
