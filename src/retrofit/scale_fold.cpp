// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <string>

#include <modicum/base/error.hpp>
#include <modicum/retrofit/round.hpp>
#include <modicum/retrofit/scale_fold.hpp>

#include "round_checks.hpp"

namespace modicum::retrofit {
namespace {

constexpr std::string_view kAwq = "retrofit.awq_scales";
constexpr std::string_view kSmooth = "retrofit.smooth_scales";
constexpr std::string_view kFold = "retrofit.fold";
constexpr int kGrid = 20;
constexpr double kLeastImportance = 1e-6;
constexpr float kLeastSmooth = 1e-5f;

void check_sources(std::string_view op, const FoldSources& sources, std::size_t channels) {
  if (!sources.empty() && sources.size() != channels) {
    fail({.op = op,
          .what = "sources",
          .expected = "one for each of " + std::to_string(channels) + " channels",
          .got = std::to_string(sources.size())});
  }
  for (const std::size_t source : sources) {
    if (source < channels) continue;
    fail({.op = op,
          .what = "a source",
          .expected = "below " + std::to_string(channels),
          .got = std::to_string(source)});
  }
}

/// Of each channel: one number, finite and not negative.
void check_magnitudes(std::string_view op, std::span<const float> values, std::size_t channels) {
  if (values.size() != channels) {
    fail({.op = op,
          .what = "magnitudes",
          .expected = "one for each of " + std::to_string(channels) + " channels",
          .got = std::to_string(values.size())});
  }
  for (const float value : values) {
    if (std::isfinite(value) && value >= 0) continue;
    fail({.op = op, .what = "a magnitude", .expected = "finite, at least 0", .got = std::to_string(value)});
  }
}

std::size_t source_of(const FoldSources& sources, std::size_t channel) {
  return sources.empty() ? channel : sources[channel];
}

std::size_t count_of(const FoldSources& sources, std::size_t channels) {
  return sources.empty() ? channels : *std::max_element(sources.begin(), sources.end()) + 1;
}

/// Of each source: the mean of its channels, at least the least one that is not 0 and 1e-6 of the largest, so
/// that no scale leaves the range of floats.
std::vector<double> importance(std::span<const float> magnitudes, const linalg::Matrix& gram,
                               const FoldSources& sources) {
  const auto channels = static_cast<std::size_t>(gram.cols());
  std::vector<double> means(count_of(sources, channels), 0.0);
  std::vector<double> counts(means.size(), 0.0);
  for (std::size_t c = 0; c < channels; ++c) {
    const auto i = static_cast<Eigen::Index>(c);
    means[source_of(sources, c)] += magnitudes.empty() ? std::sqrt(gram(i, i)) : magnitudes[c];
    counts[source_of(sources, c)] += 1;
  }
  for (std::size_t i = 0; i < means.size(); ++i) means[i] /= std::max(1.0, counts[i]);
  const double most = *std::max_element(means.begin(), means.end());
  if (most == 0) return std::vector<double>(means.size(), 1.0);
  double least = most;
  for (const double mean : means) least = mean > 0 ? std::min(least, mean) : least;
  for (double& mean : means) mean = std::max({mean, least, kLeastImportance * most});
  return means;
}

/// m^α / √(max · min).
std::vector<float> scales_at(std::span<const double> importance, double alpha) {
  const auto [least, most] = std::minmax_element(importance.begin(), importance.end());
  const double middle = std::sqrt(*least) * std::sqrt(*most);
  std::vector<float> scales(importance.size());
  for (std::size_t i = 0; i < scales.size(); ++i) {
    scales[i] = static_cast<float>(std::pow(importance[i] / middle, alpha));
  }
  return scales;
}

std::vector<float> by_column(std::span<const float> scales, const FoldSources& sources,
                             std::size_t channels) {
  std::vector<float> columns(channels);
  for (std::size_t c = 0; c < channels; ++c) columns[c] = scales[source_of(sources, c)];
  return columns;
}

/// tr(ΔW G ΔWᵀ), ΔW = W − round(W · s) / s, with s by column.
double scaled_error(const LinearView& matrix, const linalg::Matrix& gram, std::span<const float> s,
                    const RoundOptions& options, ThreadPool& pool) {
  const std::size_t cols = s.size();
  const std::size_t group = options.group == 0 ? cols : options.group;
  std::vector<float> difference(matrix.values.size());
  pool.run(matrix.rows, [&](std::size_t r) {
    std::vector<float> scaled(group);
    std::vector<std::int8_t> integers(group);
    for (std::size_t begin = 0; begin < cols; begin += group) {
      const float* const w = matrix.values.data() + r * cols + begin;
      for (std::size_t i = 0; i < group; ++i) scaled[i] = w[i] * s[begin + i];
      const float step = round_group(scaled, options.bits, options.scale_dtype, integers);
      float* const out = difference.data() + r * cols + begin;
      for (std::size_t i = 0; i < group; ++i) {
        out[i] = w[i] - static_cast<float>(integers[i]) * step / s[begin + i];
      }
    }
  });
  return output_energy(difference, matrix.rows, gram, pool);
}

}  // namespace

FoldSources grouped_query_sources(std::size_t query_heads, std::size_t kv_heads, std::size_t head_dim) {
  if (kv_heads == 0 || query_heads == 0 || query_heads % kv_heads != 0 || head_dim == 0) {
    fail({.op = kFold,
          .what = "heads",
          .expected = "a multiple of the " + std::to_string(kv_heads) + " heads of keys and values",
          .got = std::to_string(query_heads)});
  }
  FoldSources sources(query_heads * head_dim);
  for (std::size_t c = 0; c < sources.size(); ++c) {
    sources[c] = c / head_dim / (query_heads / kv_heads) * head_dim + c % head_dim;
  }
  return sources;
}

AwqScales awq_scales(std::span<const LinearView> matrices, const linalg::Matrix& gram,
                     std::span<const float> magnitudes, const RoundOptions& options, ThreadPool& pool,
                     const FoldSources& sources) {
  const auto channels = static_cast<std::size_t>(gram.cols());
  if (matrices.empty()) fail({.op = kAwq, .what = "matrices", .expected = "at least one", .got = "none"});
  check_gram(kAwq, gram, channels);
  check_round_options(kAwq, options, channels);
  for (const LinearView& matrix : matrices) check_weights(kAwq, matrix.values, matrix.rows, channels);
  if (!magnitudes.empty()) check_magnitudes(kAwq, magnitudes, channels);
  check_sources(kAwq, sources, channels);
  const std::vector<double> m = importance(magnitudes, gram, sources);
  AwqScales best;
  for (int i = 0; i < kGrid; ++i) {
    const double alpha = static_cast<double>(i) / kGrid;
    std::vector<float> scales = scales_at(m, alpha);
    const std::vector<float> columns = by_column(scales, sources, channels);
    double error = 0;
    for (const LinearView& matrix : matrices) error += scaled_error(matrix, gram, columns, options, pool);
    if (i == 0) best.unscaled_error = error;
    if (i != 0 && !(error < best.error)) continue;
    best.scales = std::move(scales);
    best.alpha = alpha;
    best.error = error;
  }
  return best;
}

std::vector<float> smooth_scales(std::span<const LinearView> matrices, std::span<const float> largest,
                                 double alpha, const FoldSources& sources) {
  const std::size_t channels = largest.size();
  if (matrices.empty()) fail({.op = kSmooth, .what = "matrices", .expected = "at least one", .got = "none"});
  if (!(alpha >= 0 && alpha <= 1)) {
    fail({.op = kSmooth, .what = "alpha", .expected = "0 to 1", .got = std::to_string(alpha)});
  }
  for (const LinearView& matrix : matrices) check_weights(kSmooth, matrix.values, matrix.rows, channels);
  check_magnitudes(kSmooth, largest, channels);
  check_sources(kSmooth, sources, channels);
  std::vector<float> inputs(count_of(sources, channels), 0.0f);
  std::vector<float> weights(inputs.size(), 0.0f);
  for (std::size_t c = 0; c < channels; ++c) {
    float& most = inputs[source_of(sources, c)];
    most = std::max(most, largest[c]);
  }
  for (const LinearView& matrix : matrices) {
    for (std::size_t begin = 0; begin < matrix.values.size(); begin += channels) {
      for (std::size_t c = 0; c < channels; ++c) {
        float& most = weights[source_of(sources, c)];
        most = std::max(most, std::abs(matrix.values[begin + c]));
      }
    }
  }
  std::vector<float> scales(inputs.size(), 1.0f);
  for (std::size_t i = 0; i < scales.size(); ++i) {
    if (inputs[i] == 0 || weights[i] == 0) continue;
    const double scale = std::pow(inputs[i], alpha) / std::pow(weights[i], 1 - alpha);
    scales[i] = std::max(kLeastSmooth, static_cast<float>(scale));
  }
  return scales;
}

void divide_channels(std::span<float> values, std::span<const float> scales) {
  if (values.size() != scales.size()) {
    fail({.op = kFold,
          .what = "channels",
          .expected = std::to_string(scales.size()) + ", as many as scales",
          .got = std::to_string(values.size())});
  }
  for (std::size_t c = 0; c < values.size(); ++c) values[c] /= scales[c];
}

void divide_rows(std::span<float> weights, std::span<const float> scales) {
  if (scales.empty() || weights.size() % scales.size() != 0) {
    fail({.op = kFold,
          .what = "weights",
          .expected = std::to_string(scales.size()) + " rows, as many as scales",
          .got = std::to_string(weights.size()) + " values"});
  }
  const std::size_t cols = weights.size() / scales.size();
  for (std::size_t i = 0; i < weights.size(); ++i) weights[i] /= scales[i / cols];
}

void scale_columns(std::span<float> weights, std::size_t rows, std::span<const float> scales,
                   const FoldSources& sources) {
  const std::size_t cols = sources.empty() ? scales.size() : sources.size();
  const bool covered = sources.empty() || *std::max_element(sources.begin(), sources.end()) < scales.size();
  if (!covered || weights.size() != rows * cols) {
    fail({.op = kFold,
          .what =
              "weights of " + std::to_string(rows) + " rows and " + std::to_string(scales.size()) + " scales",
          .expected = "a scale for each column",
          .got = std::to_string(weights.size()) + " values"});
  }
  for (std::size_t r = 0; r < rows; ++r) {
    float* const row = weights.data() + r * cols;
    for (std::size_t c = 0; c < cols; ++c) row[c] *= scales[source_of(sources, c)];
  }
}

void divide_gram(linalg::Matrix& gram, std::span<const float> scales, const FoldSources& sources) {
  const auto channels = static_cast<std::size_t>(gram.cols());
  check_gram(kFold, gram, channels);
  check_sources(kFold, sources, channels);
  if (count_of(sources, channels) > scales.size()) {
    fail({.op = kFold,
          .what = "scales",
          .expected = "one for each of " + std::to_string(count_of(sources, channels)) + " sources",
          .got = std::to_string(scales.size())});
  }
  linalg::Vector inverse(gram.cols());
  for (std::size_t c = 0; c < channels; ++c) {
    inverse(static_cast<Eigen::Index>(c)) = 1.0 / scales[source_of(sources, c)];
  }
  gram = inverse.asDiagonal() * gram * inverse.asDiagonal();
}

}  // namespace modicum::retrofit
