// SPDX-License-Identifier: Apache-2.0
#include "rope_config.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace modicum {
namespace {

// Beyond these no theta, factor or length means anything, and all that is computed of them stays finite.
constexpr double kMin = 1e-15;
constexpr double kMax = 1e15;
constexpr std::uint64_t kMaxLength = std::uint64_t{1} << 40;

bool truthy(const JsonFields& fields, const char* name) {
  return fields.has_value(name) && fields.number(name, -kMax, kMax) != 0;
}

/// 0.1·m·ln(s) + 1: by how much YaRN sharpens attention over a context stretched s times.
double yarn_mscale(double scale, double mscale = 1.0) {
  return scale <= 1 ? 1.0 : 0.1 * mscale * std::log(scale) + 1.0;
}

double yarn_attention_factor(const JsonFields& fields, double factor) {
  if (fields.has_value("attention_factor")) return fields.number("attention_factor", kMin, 1e6);
  if (!truthy(fields, "mscale") || !truthy(fields, "mscale_all_dim")) return yarn_mscale(factor);
  return yarn_mscale(factor, fields.number("mscale", kMin, 1e6)) /
         yarn_mscale(factor, fields.number("mscale_all_dim", kMin, 1e6));
}

void parse_yarn(const JsonFields& fields, std::uint64_t max_position_embeddings, RopeConfig& rope) {
  // A null factor asks for the ratio of the lengths; a missing one is an error, as in transformers.
  rope.factor = fields.has("factor") && !fields.has_value("factor")
                    ? static_cast<double>(max_position_embeddings) /
                          static_cast<double>(rope.original_max_position_embeddings)
                    : fields.number("factor", kMin, kMax);
  rope.attention_factor = yarn_attention_factor(fields, rope.factor);
  if (truthy(fields, "beta_fast")) rope.beta_fast = fields.number("beta_fast", kMin, kMax);
  if (truthy(fields, "beta_slow")) rope.beta_slow = fields.number("beta_slow", kMin, kMax);
  // Python's truth of null is false.
  rope.truncate =
      fields.has("truncate") && !fields.has_value("truncate") ? false : fields.boolean_or("truncate", true);
  if (rope.theta == 1.0) fields.refuse("rope_theta", "a base other than 1 for yarn");
}

void parse_llama3(const JsonFields& fields, RopeConfig& rope) {
  rope.factor = fields.number("factor", kMin, kMax);
  rope.low_freq_factor = fields.number("low_freq_factor", kMin, kMax);
  rope.high_freq_factor = fields.number("high_freq_factor", kMin, kMax);
  if (rope.high_freq_factor <= rope.low_freq_factor) {
    fields.refuse("high_freq_factor", "more than low_freq_factor");
  }
}

RopeType parse_type(const JsonFields& fields) {
  const char* field = fields.has("rope_type") ? "rope_type" : "type";
  const std::string type = fields.text_or(field, "default");
  if (type == "default") return RopeType::standard;
  if (type == "linear") return RopeType::linear;
  if (type == "llama3") return RopeType::llama3;
  if (type == "yarn") return RopeType::yarn;
  fields.refuse<Unsupported>(field, "default, linear, llama3 or yarn");
}

void refuse_partial(const JsonFields& fields) {
  constexpr const char* kField = "partial_rotary_factor";
  if (fields.has_value(kField) && fields.number(kField, -kMax, kMax) != 1.0) {
    fields.refuse<Unsupported>(kField, "1, rotation of the whole head");
  }
}

/// Per-layer-type rope ("rope_parameters": {"full_attention": {…}, …}).
void refuse_nested(const Json& parameters, const JsonFields& fields) {
  for (const auto& [key, value] : parameters.items()) {
    if (value.is_object())
      fields.refuse<Unsupported>(key.c_str(), "one set of rope parameters for all layers");
  }
}

/// The object that holds the parameters: rope_scaling unless it is absent, null or empty, as in transformers.
const char* parameters_field(const JsonFields& config) {
  for (const char* field : {"rope_scaling", "rope_parameters"}) {
    if (!config.has_value(field)) continue;
    if (!config.at(field).is_object()) config.refuse(field, "an object or null");
    if (!config.at(field).empty()) return field;
  }
  return nullptr;
}

void parse_parameters(const JsonFields& config, const char* field, std::uint64_t max_position_embeddings,
                      RopeConfig& rope) {
  const Json& parameters = config.at(field);
  const JsonFields fields(parameters, config.op(), config.name(field) + ".");
  refuse_nested(parameters, fields);
  refuse_partial(fields);
  rope.theta = fields.number_or("rope_theta", rope.theta, kMin, kMax);
  rope.type = parse_type(fields);
  if (rope.type == RopeType::standard) return;
  if (rope.type == RopeType::linear) {
    rope.factor = fields.number("factor", kMin, kMax);
    return;
  }
  constexpr const char* kOriginal = "original_max_position_embeddings";
  // The outer field wins over the inner one in transformers (Phi-3 spells it so).
  const JsonFields& holder = config.has(kOriginal) ? config : fields;
  rope.original_max_position_embeddings =
      holder.integer_or(kOriginal, max_position_embeddings, 1, kMaxLength);
  if (rope.type == RopeType::llama3) parse_llama3(fields, rope);
  if (rope.type == RopeType::yarn) parse_yarn(fields, max_position_embeddings, rope);
}

/// YaRN: the dimension whose wave turns `rotations` times within the original context.
double correction_dim(double rotations, double dim, const RopeConfig& rope) {
  const double length = static_cast<double>(rope.original_max_position_embeddings);
  return dim * std::log(length / (rotations * 2 * std::numbers::pi)) / (2 * std::log(rope.theta));
}

/// YaRN (arXiv:2309.00071): fast dimensions keep their frequency, slow ones are interpolated, a ramp lies
/// between.
void apply_yarn(const RopeConfig& rope, std::size_t head_dim, std::vector<double>& frequencies) {
  const double dim = static_cast<double>(head_dim);
  double low = correction_dim(rope.beta_fast, dim, rope);
  double high = correction_dim(rope.beta_slow, dim, rope);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1);
  if (low == high) high += 0.001;
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    frequencies[i] = frequencies[i] / rope.factor * ramp + frequencies[i] * (1 - ramp);
  }
}

/// Llama 3.1: waves longer than the original context / low_freq_factor are slowed by `factor`, those shorter
/// than / high_freq_factor are left, and between them the change is smooth.
double llama3_frequency(const RopeConfig& rope, double frequency) {
  const double length = static_cast<double>(rope.original_max_position_embeddings);
  const double wavelength = 2 * std::numbers::pi / frequency;
  if (wavelength > length / rope.low_freq_factor) return frequency / rope.factor;
  if (wavelength < length / rope.high_freq_factor) return frequency;
  const double smooth =
      (length / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
  return (1 - smooth) * frequency / rope.factor + smooth * frequency;
}

}  // namespace

RopeConfig parse_rope(const JsonFields& config, std::uint64_t max_position_embeddings) {
  refuse_partial(config);
  RopeConfig rope;
  rope.theta = config.number_or("rope_theta", rope.theta, kMin, kMax);
  if (const char* field = parameters_field(config)) {
    parse_parameters(config, field, max_position_embeddings, rope);
  }
  return rope;
}

std::vector<double> rope_inverse_frequencies(const RopeConfig& rope, std::size_t head_dim) {
  std::vector<double> frequencies(head_dim / 2);
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    frequencies[i] = std::pow(rope.theta, -static_cast<double>(2 * i) / static_cast<double>(head_dim));
  }
  switch (rope.type) {
    case RopeType::standard:
      break;
    case RopeType::linear:
      for (double& frequency : frequencies) frequency /= rope.factor;
      break;
    case RopeType::llama3:
      for (double& frequency : frequencies) frequency = llama3_frequency(rope, frequency);
      break;
    case RopeType::yarn:
      apply_yarn(rope, head_dim, frequencies);
      break;
  }
  return frequencies;
}

}  // namespace modicum
