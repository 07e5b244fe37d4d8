// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <modicum/io/model_config.hpp>
#include <modicum/retrofit/channels.hpp>
#include <modicum/retrofit/kv_merge.hpp>

namespace modicum::retrofit {

/// What makes up for something that was taken away.
enum class Refit {
  least_squares,  ///< the matrix that follows, fitted anew against the original's output
  alternating,    ///< of a feed-forward layer all three matrices, in turns
  none,
};

enum class Rounding { nearest, gptq };
enum class Scaling { none, awq, smooth };

/// Feed-forward layers with fewer inner channels.
struct FfnEdit {
  std::size_t intermediate_size = 0;
  ChannelChoice choice = ChannelChoice::second_order;
  Refit refit = Refit::alternating;
};

/// Fewer key-value heads.
struct KvEdit {
  std::size_t kv_heads = 0;
  KvMergeMethod method = KvMergeMethod::complex_pca;
  Refit refit = Refit::least_squares;  ///< of the output projection
};

/// Layers [first, first + count) go; with a refit, the feed-forward layer before them makes up for it.
struct DepthEdit {
  std::size_t first = 0;
  std::size_t count = 0;
  Refit refit = Refit::alternating;
};

/// Keys within `window` positions only, in some layers (numbered as in the source).
struct WindowEdit {
  std::size_t window = 0;
  std::vector<std::size_t> layers;     ///< ascending
  Refit refit = Refit::least_squares;  ///< of the output projection
};

/// Linear layers as integers.
struct QuantizeEdit {
  std::size_t bits = 8;
  std::size_t group = 32;  ///< columns that share a scale; 0: whole rows, and activations in int8 (W8A8)
  Rounding rounding = Rounding::gptq;
  Scaling scaling = Scaling::none;
  std::map<std::size_t, std::size_t> layer_bits;  ///< of layers that differ (numbered as in the source)
  std::optional<std::size_t> head_bits;           ///< of the output head; empty: stays in floats
};

/// Linear layers as two factors: runs in modicum alone.
struct LowRankEdit {
  std::vector<std::string> modules;  ///< kinds: "q_proj", …, "down_proj"
  double keep = 0.5;                 ///< of each matrix's parameters
};

/// What a retrofit changes: shapes are the same in every layer, as standard configurations want them. The
/// edits of a layer are made in this order, each on what the ones before left.
struct Plan {
  std::optional<DepthEdit> depth;
  std::optional<WindowEdit> window;
  std::optional<KvEdit> kv;
  std::optional<FfnEdit> ffn;
  std::optional<LowRankEdit> low_rank;
  std::optional<QuantizeEdit> quantize;

  bool empty() const { return !depth && !window && !kv && !ffn && !low_rank && !quantize; }
  /// Whether statistics of text are needed.
  bool needs_text() const;

  /// JSON with "schema": "modicum.retrofit.plan/1"; the same plan gives the same text.
  std::string to_json() const;
  /// Throws `FormatError` for JSON that is no plan, naming the field: also for fields that it does not know,
  /// which would otherwise be left out silently.
  static Plan from_json(std::string_view json);
};

/// Throws `InvalidArgument` where the plan does not fit a model of this configuration (a width that is not
/// smaller or no multiple of 64 or 32, heads that do not divide, layers that are not there), `Unsupported`
/// where it fits but cannot be done, with the reason: keys normalised by head (QK-norm) cannot be mixed.
void check_plan(const Plan& plan, const ModelConfig& config);

/// The configuration after the plan.
ModelConfig planned_config(const ModelConfig& config, const Plan& plan);

}  // namespace modicum::retrofit
