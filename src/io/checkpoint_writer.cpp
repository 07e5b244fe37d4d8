// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <optional>
#include <system_error>
#include <utility>

#include <modicum/base/atomic_file.hpp>
#include <modicum/io/checkpoint.hpp>

#include "../base/quote.hpp"
#include "checkpoint_layout.hpp"
#include "checkpoint_state.hpp"
#include "safetensors_header.hpp"

namespace modicum {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kOp = "checkpoint.write";

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
                                                          metadata, kTensorAlignment));
  }
};

CheckpointWriter::CheckpointWriter(fs::path directory, std::vector<TensorSpec> specs,
                                   std::uint64_t shard_bytes, std::map<std::string, std::string> metadata) {
  const std::uint64_t total = check_specs(specs);
  prepare_directory(directory);
  refuse_existing_weights(directory);
  state_ = std::make_unique<State>(State{
      std::move(directory), split_into_shards(std::move(specs), shard_bytes), std::move(metadata), total});
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
