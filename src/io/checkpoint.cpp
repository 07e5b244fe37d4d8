// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <optional>
#include <system_error>
#include <utility>

#include <modicum/base/error.hpp>
#include <modicum/io/checkpoint.hpp>

#include "../base/json.hpp"
#include "../base/quote.hpp"
#include "../base/text_file.hpp"
#include "checkpoint_state.hpp"

namespace modicum {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kOp = "checkpoint.open";

/// Where the shard called `name` lies: in the directory or below it, wherever an index may point.
fs::path shard_path(const fs::path& directory, const std::string& name) {
  const fs::path relative(name);
  bool inside = !name.empty() && relative.is_relative() && name.find('\0') == std::string::npos;
  for (const fs::path& part : relative) inside = inside && part != "..";
  if (!inside) {
    fail<FormatError>({.op = kOp,
                       .what = "shard named by " + quote((directory / kIndexFile).string()),
                       .expected = "a file name within the directory",
                       .got = quote(name)});
  }
  return directory / relative;
}

SafetensorsFile open_shard(const fs::path& directory, const std::string& name) {
  const fs::path path = shard_path(directory, name);
  if (!is_there(path)) {
    fail<FormatError>({.op = kOp,
                       .what = quote((directory / kIndexFile).string()) + " names a shard that is absent",
                       .got = quote(name),
                       .todo = "download the missing file again"});
  }
  return SafetensorsFile::open(path);
}

[[noreturn]] void fail_missing(const fs::path& directory) {
  const bool pickled =
      is_there(directory / "pytorch_model.bin") || is_there(directory / "pytorch_model.bin.index.json");
  fail<IoError>({.op = kOp,
                 .what = quote(directory.string()),
                 .expected = std::string(kWeightsFile) + " or " + kIndexFile,
                 .got = pickled ? "pickled weights (pytorch_model.bin)" : "neither",
                 .todo = pickled ? "save the model as safetensors with transformers: save_pretrained" : ""});
}

}  // namespace

const SafetensorsFile& Checkpoint::State::file(std::string_view tensor) const {
  const auto found = file_of.find(tensor);
  if (found == file_of.end()) {
    fail<FormatError>({.op = "checkpoint.tensor",
                       .what = quote(directory.string()),
                       .expected = "a tensor " + quote(tensor),
                       .got = std::to_string(file_of.size()) + " others"});
  }
  return files[found->second];
}

namespace {

struct Weights {
  std::vector<SafetensorsFile> files;
  std::map<std::string, std::size_t, std::less<>> file_of;
};

Weights open_single(const fs::path& directory) {
  Weights weights;
  weights.files.push_back(SafetensorsFile::open(directory / kWeightsFile));
  for (const auto& [name, info] : weights.files[0].header().tensors) weights.file_of.emplace(name, 0);
  return weights;
}

Weights open_sharded(const fs::path& directory) {
  const fs::path path = directory / kIndexFile;
  const Json json = parse_json(read_text(path), kOp, quote(path.string()));
  const JsonFields index(json, kOp, quote(path.string()) + ": ");
  const Json& map = index.at("weight_map");
  if (!map.is_object()) index.refuse("weight_map", "an object from tensor to file");
  Weights weights;
  std::map<std::string, std::size_t> shards;
  for (const auto& [tensor, file] : map.items()) {
    if (!file.is_string()) index.refuse("weight_map", "names of files");
    const auto& name = file.get_ref<const std::string&>();
    const auto [shard, is_new] = shards.emplace(name, weights.files.size());
    if (is_new) weights.files.push_back(open_shard(directory, name));
    if (!weights.files[shard->second].header().tensors.contains(tensor)) {
      fail<FormatError>({.op = kOp,
                         .what = "shard " + quote(name) + " of " + quote(path.string()),
                         .expected = "the tensor " + quote(tensor) + ", as the index says",
                         .got = "none of that name"});
    }
    weights.file_of.emplace(tensor, shard->second);
  }
  return weights;
}

std::optional<DType> float_dtype(std::string_view name) {
  if (name == "F32") return DType::f32;
  if (name == "BF16") return DType::bf16;
  if (name == "F16") return DType::f16;
  return std::nullopt;
}

bool has_shape(const std::vector<std::uint64_t>& shape, std::size_t rows, std::size_t cols) {
  return (shape.size() == 2 && shape[0] == rows && shape[1] == cols) ||
         (shape.size() == 1 && rows == 1 && shape[0] == cols);
}

}  // namespace

std::string shape_text(const std::vector<std::uint64_t>& shape) {
  std::string text = "[";
  for (const std::uint64_t extent : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(extent);
  return text + "]";
}

Checkpoint Checkpoint::open(const fs::path& directory) {
  std::error_code ignored;
  if (!fs::is_directory(directory, ignored)) {
    fail<IoError>({.op = kOp,
                   .what = quote(directory.string()),
                   .expected = "a directory with config.json and model.safetensors",
                   .got = is_there(directory) ? "a file" : "nothing there"});
  }
  auto state = std::make_shared<State>();
  state->directory = directory;
  const fs::path generation = directory / "generation_config.json";
  state->config = parse_model_config(read_text(directory / "config.json"),
                                     is_there(generation) ? read_text(generation) : std::string());
  const bool single = is_there(directory / kWeightsFile);
  if (!single && !is_there(directory / kIndexFile)) fail_missing(directory);
  Weights weights = single ? open_single(directory) : open_sharded(directory);
  state->files = std::move(weights.files);
  state->file_of = std::move(weights.file_of);
  return Checkpoint(std::move(state));
}

const fs::path& Checkpoint::directory() const noexcept {
  return state_->directory;
}
const ModelConfig& Checkpoint::config() const noexcept {
  return state_->config;
}
const std::vector<SafetensorsFile>& Checkpoint::files() const noexcept {
  return state_->files;
}
bool Checkpoint::contains(std::string_view tensor) const {
  return state_->file_of.contains(tensor);
}

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> names;
  names.reserve(state_->file_of.size());
  for (const auto& [name, file] : state_->file_of) names.push_back(name);
  return names;
}

const TensorInfo& Checkpoint::info(std::string_view tensor) const {
  return state_->file(tensor).info(tensor);
}

std::span<const std::byte> Checkpoint::bytes(std::string_view tensor) const {
  return state_->file(tensor).bytes(tensor);
}

WeightView Checkpoint::weight(std::string_view tensor, std::size_t rows, std::size_t cols) const {
  const TensorInfo& tensor_info = info(tensor);
  const std::optional<DType> dtype = float_dtype(tensor_info.dtype);
  if (!dtype || !has_shape(tensor_info.shape, rows, cols)) {
    fail<FormatError>(
        {.op = "checkpoint.weight",
         .what = "tensor " + quote(tensor) + " in " + quote(state_->directory.string()),
         .expected = "F32, BF16 or F16 of [" + std::to_string(rows) + ", " + std::to_string(cols) + "]",
         .got = tensor_info.dtype + " of " + shape_text(tensor_info.shape)});
  }
  const std::span<const std::byte> raw = bytes(tensor);
  const void* data = raw.data();
  if (reinterpret_cast<std::uintptr_t>(data) % size_of(*dtype) != 0) {
    const std::lock_guard lock(state_->mutex);
    auto found = state_->aligned.find(tensor);
    if (found == state_->aligned.end()) {
      found = state_->aligned.emplace(std::string(tensor), std::vector(raw.begin(), raw.end())).first;
    }
    data = found->second.data();
  }
  return {.data = data, .dtype = *dtype, .rows = rows, .cols = cols};
}

}  // namespace modicum
