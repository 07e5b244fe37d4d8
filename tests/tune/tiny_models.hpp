// SPDX-License-Identifier: Apache-2.0
// Models of a few hundred weights to merge.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <span>
#include <string>
#include <vector>

#include <modicum/base/error.hpp>
#include <modicum/io/checkpoint.hpp>
#include <modicum/tune/merge.hpp>

#include "base/temporary_directory.hpp"
#include "model/random_model.hpp"

using Floats = std::vector<float>;

inline std::string model_json(const std::string& more = "") {
  return R"({"model_type":"llama","hidden_size":8,"intermediate_size":12,"num_attention_heads":2,)"
         R"("num_key_value_heads":1,"head_dim":4,"vocab_size":11,"max_position_embeddings":32,)"
         R"("num_hidden_layers":2)" +
         more + "}";
}

inline std::vector<modicum::TensorSpec> model_specs(const std::string& dtype = "F32",
                                                    const std::string& json = model_json()) {
  return tensors_of(modicum::parse_model_config(json), dtype);
}

/// Random weights; another model for every seed.
inline std::filesystem::path write_model(const std::filesystem::path& directory, std::uint32_t seed,
                                         const std::string& dtype = "F32",
                                         const std::string& json = model_json()) {
  write_checkpoint(directory, json, model_specs(dtype, json), seed);
  return directory;
}

/// A tensor's elements in f32.
inline Floats floats_of(const modicum::Checkpoint& model, const std::string& name) {
  const std::string& dtype = model.info(name).dtype;
  const std::span<const std::byte> bytes = model.bytes(name);
  const auto read = [&](auto tag) {
    using T = decltype(tag);
    Floats out(bytes.size() / sizeof(T));
    for (std::size_t i = 0; i < out.size(); ++i) {
      T value;
      std::memcpy(&value, bytes.data() + i * sizeof(T), sizeof(T));
      out[i] = modicum::to_f32(value);
    }
    return out;
  };
  if (dtype == "BF16") return read(modicum::bf16{});
  return dtype == "F16" ? read(modicum::f16{}) : read(float{});
}

inline Floats floats_of(const std::filesystem::path& directory, const std::string& name) {
  return floats_of(modicum::Checkpoint::open(directory), name);
}

/// Numbers as they are after a detour through a dtype.
inline Floats rounded(Floats values, modicum::DType dtype) {
  modicum::dispatch(dtype, [&](auto tag) {
    for (float& value : values) value = modicum::to_f32(modicum::from_f32<decltype(tag)>(value));
  });
  return values;
}

/// The model in `from` in f32, with some of its tensors replaced.
inline std::filesystem::path write_changed(const std::filesystem::path& from, const std::filesystem::path& to,
                                           const std::map<std::string, Floats>& changed) {
  const modicum::Checkpoint model = modicum::Checkpoint::open(from);
  std::vector<modicum::TensorSpec> specs;
  for (const std::string& name : model.names()) specs.push_back({name, "F32", model.info(name).shape});
  std::filesystem::create_directories(to);
  std::filesystem::copy_file(from / "config.json", to / "config.json");
  modicum::CheckpointWriter writer(to, specs);
  for (const modicum::TensorSpec& spec : specs) {
    const auto found = changed.find(spec.name);
    const Floats values = found == changed.end() ? floats_of(model, spec.name) : found->second;
    writer.append(std::as_bytes(std::span(values)));
  }
  writer.commit();
  return to;
}

inline std::string bytes_of(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Every file of a directory by name, with its bytes.
inline std::map<std::string, std::string> files_in(const std::filesystem::path& directory) {
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    files[entry.path().filename().string()] = bytes_of(entry.path());
  }
  return files;
}

inline std::set<std::string> names_in(const std::filesystem::path& directory) {
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(directory))
    names.insert(entry.path().filename().string());
  return names;
}

inline modicum::tune::MergePlan merge_of(modicum::tune::Method method, const std::filesystem::path& base,
                                         const std::vector<std::filesystem::path>& models) {
  modicum::tune::MergePlan plan{.method = method, .base = base.string()};
  for (const auto& model : models) plan.models.push_back({.model = model.string()});
  return plan;
}

inline modicum::tune::MergeReport run_merge(const modicum::tune::MergePlan& plan,
                                            const std::filesystem::path& to, std::size_t threads = 1,
                                            const modicum::tune::MergeOptions& options = {}) {
  modicum::ThreadPool pool(threads);
  return modicum::tune::merge(plan, to, options, pool);
}

/// What a merge that is refused says; empty where it is not refused.
template <class E>
std::string refusal(const modicum::tune::MergePlan& plan, const std::filesystem::path& to) {
  try {
    run_merge(plan, to);
  } catch (const E& error) {
    return error.what();
  }
  return "";
}
