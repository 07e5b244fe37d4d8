// SPDX-License-Identifier: Apache-2.0
// A LoRA adapter as PEFT writes it.
#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <modicum/io/checkpoint.hpp>
#include <modicum/io/safetensors.hpp>

namespace modicum {
class JsonFields;
}

namespace modicum::tune {

inline constexpr const char* kEmbedding = "model.embed_tokens.weight";
inline constexpr const char* kHead = "lm_head.weight";

/// ΔW = scale · B A of one linear layer, with B [rows, rank] and A [rank, cols] in f32.
struct LowRankUpdate {
  std::vector<float> a, b;
  std::size_t rank = 0;
  float scale = 1;
};

/// adapter_config.json and adapter_model.safetensors of a directory. Rank and alpha patterns and rsLoRA are
/// understood, LoRA of embeddings too, and whole tensors (PEFT's modules_to_save). DoRA, biases of LoRA
/// layers and transposed layers are refused.
class Adapter {
 public:
  /// Throws `IoError`, `FormatError` and `Unsupported`, naming file and field.
  static Adapter open(const std::filesystem::path& directory);

  const std::filesystem::path& directory() const noexcept { return directory_; }
  const std::filesystem::path& weights() const { return file_.file().path(); }
  /// Throws `FormatError` where it changes something that `model` does not have, or of another shape.
  void check(const Checkpoint& model) const;
  /// Whether the weight `tensor` ("model.layers.0.mlp.up_proj.weight") is changed by two factors.
  bool updates(const std::string& tensor) const { return updates_.contains(tensor); }
  LowRankUpdate update(const std::string& tensor) const;
  /// Whether the adapter brings the whole of `tensor`, and where.
  bool replaces(const std::string& tensor) const { return whole_.contains(tensor); }
  /// As `Checkpoint::weight`.
  WeightView replacement(const std::string& tensor, std::size_t rows, std::size_t cols) const;

 private:
  struct Factors {
    std::string a, b;  ///< names of tensors
    bool embedding = false;
    double scale = 1;
  };

  void read_config(const std::string& text);
  void read_alphas(const std::string& text, const JsonFields& fields);
  void read_names();
  double scale_of(const std::string& module, std::size_t rank) const;

  std::filesystem::path directory_;
  SafetensorsFile file_;
  double alpha_ = 0;
  bool rank_stabilised_ = false;
  std::vector<std::pair<std::string, double>> alphas_;  ///< by pattern
  std::map<std::string, Factors> updates_;
  std::map<std::string, std::string> whole_;
};

}  // namespace modicum::tune
