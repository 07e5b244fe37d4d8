// SPDX-License-Identifier: Apache-2.0
#include "adapter.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>

#include <modicum/base/error.hpp>
#include <modicum/tensor/dtype.hpp>

#include "../base/json.hpp"
#include "../base/quote.hpp"
#include "../base/text_file.hpp"
#include "../io/name_pattern.hpp"

namespace modicum::tune {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kOp = "adapter";
constexpr std::string_view kPrefix = "base_model.model.";
constexpr std::size_t kMost = std::size_t{1} << 20;

std::optional<DType> float_dtype(std::string_view name) {
  if (name == "F32") return DType::f32;
  if (name == "BF16") return DType::bf16;
  if (name == "F16") return DType::f16;
  return std::nullopt;
}

[[noreturn]] void refuse_tensor(const fs::path& directory, const std::string& name, std::string expected,
                                std::string got) {
  fail<FormatError>({.op = kOp,
                     .what = "tensor " + quote(name) + " of " + quote(directory.string()),
                     .expected = std::move(expected),
                     .got = std::move(got)});
}

/// A matrix [rows, cols] in f32, whatever its bytes' alignment.
std::vector<float> floats_of(const SafetensorsFile& file, const std::string& name) {
  const TensorInfo& info = file.info(name);
  const std::span<const std::byte> bytes = file.bytes(name);
  return dispatch(*float_dtype(info.dtype), [&](auto tag) {
    using T = decltype(tag);
    std::vector<float> values(bytes.size() / sizeof(T));
    for (std::size_t i = 0; i < values.size(); ++i) {
      T value;
      std::memcpy(&value, bytes.data() + i * sizeof(T), sizeof(T));
      values[i] = to_f32(value);
    }
    return values;
  });
}

/// [cols, rows] → [rows, cols].
std::vector<float> transposed(const std::vector<float>& x, std::size_t rows, std::size_t cols) {
  std::vector<float> out(x.size());
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t c = 0; c < cols; ++c) out[r * cols + c] = x[c * rows + r];
  }
  return out;
}

/// PEFT's `(.*\.)?(pattern)$`: whether it fits the name or its end after a dot. Empty as `matches_pattern`.
std::optional<bool> fits_module(std::string pattern, std::string_view module) {
  if (!pattern.ends_with('$')) pattern += '$';
  std::optional<bool> fits = matches_pattern(pattern, module);
  if (pattern.starts_with('^')) return fits;
  for (std::size_t dot = module.find('.'); fits == false && dot != std::string_view::npos;
       dot = module.find('.', dot + 1)) {
    fits = matches_pattern(pattern, module.substr(dot + 1));
  }
  return fits;
}

}  // namespace

Adapter Adapter::open(const fs::path& directory) {
  Adapter adapter;
  adapter.directory_ = directory;
  const fs::path config = directory / "adapter_config.json";
  if (!is_there(config)) {
    fail<IoError>({.op = kOp,
                   .what = quote(directory.string()),
                   .expected = "a PEFT adapter (adapter_config.json)",
                   .got = is_there(directory) ? "none" : "nothing there"});
  }
  adapter.read_config(read_text(config));
  const fs::path weights = directory / "adapter_model.safetensors";
  if (!is_there(weights)) {
    const bool pickled = is_there(directory / "adapter_model.bin");
    fail<IoError>({.op = kOp,
                   .what = quote(directory.string()),
                   .expected = "adapter_model.safetensors",
                   .got = pickled ? "pickled weights (adapter_model.bin)" : "none",
                   .todo = pickled ? "save it with a current version of PEFT" : ""});
  }
  adapter.file_ = SafetensorsFile::open(weights);
  adapter.read_names();
  return adapter;
}

void Adapter::read_config(const std::string& text) {
  const std::string where = quote((directory_ / "adapter_config.json").string());
  const Json json = parse_json(text, kOp, where);
  const JsonFields fields(json, kOp, where + ": ");
  if (fields.text_or("peft_type", "") != "LORA") fields.refuse<Unsupported>("peft_type", "LORA");
  const bool off[] = {fields.boolean_or("use_dora", false), fields.boolean_or("fan_in_fan_out", false),
                      fields.boolean_or("lora_bias", false)};
  const char* const names[] = {"use_dora", "fan_in_fan_out", "lora_bias"};
  for (std::size_t i = 0; i < 3; ++i) {
    if (off[i]) fields.refuse<Unsupported>(names[i], "false");
  }
  if (fields.has_value("bias") && fields.text("bias") != "none") fields.refuse<Unsupported>("bias", "none");
  alpha_ = fields.number_or("lora_alpha", 8, 0, 1e9);
  rank_stabilised_ = fields.boolean_or("use_rslora", false);
  if (fields.has_value("alpha_pattern")) read_alphas(text, fields);
}

void Adapter::read_alphas(const std::string& text, const JsonFields& fields) {
  const JsonFields alphas(fields.at("alpha_pattern"), kOp, fields.name("alpha_pattern."));
  // The first pattern that fits counts, in the order of the file.
  const auto ordered = nlohmann::ordered_json::parse(text);
  for (const auto& entry : ordered.at("alpha_pattern").items()) {
    const std::string& pattern = entry.key();
    if (!fits_module(pattern, "")) {
      fail<Unsupported>({.op = kOp,
                         .what = alphas.name(quote(pattern)),
                         .expected = "a pattern of characters, dots, \\d, *, + and ?",
                         .got = "another expression",
                         .todo = "name the modules one by one"});
    }
    alphas_.emplace_back(pattern, alphas.number(pattern.c_str(), 0, 1e9));
  }
}

void Adapter::read_names() {
  for (const auto& [stored, info] : file_.header().tensors) {
    if (!float_dtype(info.dtype)) refuse_tensor(directory_, stored, "F32, BF16 or F16", info.dtype);
    if (!stored.starts_with(kPrefix)) {
      refuse_tensor(directory_, stored, "a name that begins with " + quote(kPrefix), "another");
    }
    const std::string name = stored.substr(kPrefix.size());
    const auto part = [&](std::string_view ending) -> std::optional<std::string> {
      if (!name.ends_with(ending)) return std::nullopt;
      return name.substr(0, name.size() - ending.size());
    };
    if (const auto module = part(".lora_A.weight")) {
      updates_[*module + ".weight"].a = stored;
    } else if (const auto module_b = part(".lora_B.weight")) {
      updates_[*module_b + ".weight"].b = stored;
    } else if (const auto embedding = part(".lora_embedding_A")) {
      updates_[*embedding + ".weight"].a = stored;
      updates_[*embedding + ".weight"].embedding = true;
    } else if (const auto embedding_b = part(".lora_embedding_B")) {
      updates_[*embedding_b + ".weight"].b = stored;
    } else if (const auto beneath = part(".base_layer.weight")) {
      whole_[*beneath + ".weight"] = stored;  // embedding or head as it was, beside its factors
    } else if (name.find("lora_") != std::string::npos) {
      fail<Unsupported>({.op = kOp,
                         .what = "tensor " + quote(stored) + " of " + quote(directory_.string()),
                         .expected = "lora_A, lora_B and whole tensors",
                         .got = "another part of LoRA"});
    } else {
      whole_[name] = stored;
    }
  }
  for (auto& [tensor, factors] : updates_) {
    if (factors.a.empty() || factors.b.empty()) {
      refuse_tensor(directory_, tensor, "two factors", factors.a.empty() ? "B alone" : "A alone");
    }
    const auto& a = file_.info(factors.a).shape;
    const auto& b = file_.info(factors.b).shape;
    if (a.size() != 2 || b.size() != 2 || a[0] != b[1] || a[0] == 0 || a[0] > kMost) {
      refuse_tensor(directory_, tensor, "factors of one rank", "others");
    }
    factors.scale = scale_of(tensor.substr(0, tensor.rfind('.')), a[0]);
  }
}

double Adapter::scale_of(const std::string& module, std::size_t rank) const {
  double alpha = alpha_;
  for (const auto& [pattern, value] : alphas_) {
    if (fits_module(pattern, module).value_or(false)) {
      alpha = value;
      break;
    }
  }
  const auto r = static_cast<double>(rank);
  return alpha / (rank_stabilised_ ? std::sqrt(r) : r);
}

void Adapter::check(const Checkpoint& model) const {
  const auto shape_of = [&](const std::string& tensor) {
    if (!model.contains(tensor)) {
      refuse_tensor(directory_, tensor, "one that " + quote(model.directory().string()) + " has", "none");
    }
    return model.info(tensor).shape;
  };
  for (const auto& [tensor, factors] : updates_) {
    const auto shape = shape_of(tensor);
    const auto& a = file_.info(factors.a).shape;
    const auto& b = file_.info(factors.b).shape;
    // Of an embedding A is [rank, vocabulary] and B [width, rank]: the update is (B A)ᵀ.
    const std::uint64_t rows = factors.embedding ? a[1] : b[0], cols = factors.embedding ? b[0] : a[1];
    if (shape != std::vector<std::uint64_t>{rows, cols}) {
      refuse_tensor(directory_, tensor, "factors of the model's shape",
                    "[" + std::to_string(rows) + ", " + std::to_string(cols) + "]");
    }
  }
  for (const auto& [tensor, stored] : whole_) {
    if (tensor == kHead && model.config().tie_word_embeddings) {
      const auto embedding = whole_.find(kEmbedding);
      if (embedding != whole_.end() &&
          std::ranges::equal(file_.bytes(stored), file_.bytes(embedding->second))) {
        continue;  // PEFT writes it twice
      }
      fail<Unsupported>({.op = kOp,
                         .what = "tensor " + quote(stored) + " of " + quote(directory_.string()),
                         .expected = "the embedding, which the head is tied to",
                         .got = "another"});
    }
    if (file_.info(stored).shape != shape_of(tensor)) {
      refuse_tensor(directory_, stored, "the model's shape", "another");
    }
  }
}

LowRankUpdate Adapter::update(const std::string& tensor) const {
  const Factors& factors = updates_.at(tensor);
  const auto& a = file_.info(factors.a).shape;
  LowRankUpdate update{.a = floats_of(file_, factors.a),
                       .b = floats_of(file_, factors.b),
                       .rank = a[0],
                       .scale = static_cast<float>(factors.scale)};
  if (!factors.embedding) return update;
  const std::size_t width = file_.info(factors.b).shape[0];
  std::vector<float> rows = transposed(update.a, a[1], a[0]);  // [vocabulary, rank]
  update.a = transposed(update.b, a[0], width);                // [rank, width]
  update.b = std::move(rows);
  return update;
}

WeightView Adapter::replacement(const std::string& tensor, std::size_t rows, std::size_t cols) const {
  const std::string& stored = whole_.at(tensor);
  const DType dtype = *float_dtype(file_.info(stored).dtype);
  const std::byte* const data = file_.bytes(stored).data();
  if (reinterpret_cast<std::uintptr_t>(data) % size_of(dtype) != 0) {
    fail<Unsupported>({.op = kOp,
                       .what = "tensor " + quote(stored) + " of " + quote(directory_.string()),
                       .expected = "data that is aligned to its type",
                       .got = "data that is not",
                       .todo = "save it again with a current version of PEFT"});
  }
  return {.data = data, .dtype = dtype, .rows = rows, .cols = cols};
}

}  // namespace modicum::tune
