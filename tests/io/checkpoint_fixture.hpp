// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>

#include "base/temporary_directory.hpp"
#include "io/safetensors_bytes.hpp"

inline constexpr std::string_view kConfig =
    R"({"model_type":"llama","hidden_size":4,"intermediate_size":8,"num_hidden_layers":1,)"
    R"("num_attention_heads":2,"vocab_size":9})";

/// One tensor of a safetensors file.
inline std::string tensor_json(std::string_view name, std::string_view dtype, std::string_view shape,
                               std::size_t begin, std::size_t end) {
  std::string text = "\"";
  text.append(name).append(R"(":{"dtype":")").append(dtype).append(R"(","shape":)").append(shape);
  text.append(R"(,"data_offsets":[)").append(std::to_string(begin)).append(",").append(std::to_string(end));
  return text.append("]}");
}

/// A safetensors file of `tensors` (each a `tensor_json`) and their `data`, with `padding` spaces after the
/// header.
inline std::string weights_file(std::initializer_list<std::string> tensors, std::string_view data,
                                std::size_t padding = 0) {
  std::string header = "{";
  for (const std::string& tensor : tensors) {
    if (header.size() > 1) header += ',';
    header += tensor;
  }
  header += '}';
  return safetensors_bytes(header.append(padding, ' '), data);
}

/// "a": F32 [2, 1] of "aaaabbbb", and "b": BF16 [2] of "ccdd", as one file.
inline void write_single(const TemporaryDirectory& directory) {
  directory.write("config.json", kConfig);
  directory.write("model.safetensors", weights_file({tensor_json("a", "F32", "[2,1]", 0, 8),
                                                     tensor_json("b", "BF16", "[2]", 8, 12)},
                                                    "aaaabbbbccdd"));
}

/// The same weights as two shards with an index.
inline void write_sharded(const TemporaryDirectory& directory) {
  directory.write("config.json", kConfig);
  directory.write("one.safetensors", weights_file({tensor_json("a", "F32", "[2,1]", 0, 8)}, "aaaabbbb"));
  directory.write("two.safetensors", weights_file({tensor_json("b", "BF16", "[2]", 0, 4)}, "ccdd"));
  directory.write(
      "model.safetensors.index.json",
      R"({"metadata":{"total_size":12},"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})");
}
