// SPDX-License-Identifier: Apache-2.0
// config.json, and after a NUL generation_config.json, are refused with FormatError or Unsupported, or give
// sizes that fit together, finite frequencies and groups of a multiple of 32.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include <modicum/base/error.hpp>
#include <modicum/io/model_config.hpp>
#include <modicum/tensor/matrix.hpp>

namespace {

constexpr std::size_t kMaxHeadDim = 1024;  // longer lists of frequencies show nothing new

void check(bool holds) {
  if (!holds) std::abort();
}

void check_quantization(const modicum::QuantizationConfig& config) {
  for (const modicum::QuantizationScheme& scheme : config.schemes) {
    check(scheme.bits == 8 || (scheme.bits == 4 && scheme.format == modicum::IntegerFormat::packed));
    check(scheme.group % modicum::kQuantGroup == 0);
  }
  for (const char* module : {"lm_head", "model.layers.0.mlp.up_proj", "model.layers.12.self_attn.q_proj"}) {
    const modicum::QuantizationScheme* found = config.scheme_of(module);
    check(found == nullptr || (found >= config.schemes.data() && found <= &config.schemes.back()));
  }
}

void check_config(const modicum::ModelConfig& config) {
  if (config.quantization) check_quantization(*config.quantization);
  check(config.hidden_size > 0 && config.intermediate_size > 0 && config.vocab_size > 0);
  check(config.num_key_value_heads > 0 && config.num_attention_heads % config.num_key_value_heads == 0);
  check(config.head_dim > 0 && config.head_dim % 2 == 0);
  check(config.sliding_window.size() == config.num_hidden_layers);
  check(std::isfinite(config.rope.attention_factor) && config.rope.attention_factor > 0);
  if (config.head_dim > kMaxHeadDim) return;
  for (const double frequency : modicum::rope_inverse_frequencies(config.rope, config.head_dim)) {
    check(std::isfinite(frequency) && frequency >= 0);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::size_t end = input.find('\0');
  const std::string_view generation =
      end == std::string_view::npos ? std::string_view() : input.substr(end + 1);
  try {
    check_config(modicum::parse_model_config(input.substr(0, end), generation));
  } catch (const modicum::FormatError&) {
  } catch (const modicum::Unsupported&) {
  }
  return 0;
}
