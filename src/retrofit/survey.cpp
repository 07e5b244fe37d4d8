// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <optional>
#include <utility>

#include <modicum/base/error.hpp>
#include <modicum/model/weights.hpp>
#include <modicum/ops/elementwise.hpp>
#include <modicum/retrofit/channels.hpp>
#include <modicum/retrofit/kv_merge.hpp>
#include <modicum/retrofit/ridge.hpp>
#include <modicum/retrofit/round_matrix.hpp>
#include <modicum/retrofit/survey.hpp>

#include "attention_weights.hpp"
#include "chunks.hpp"
#include "layer_editor.hpp"
#include "../statistics/layer_pass.hpp"
#include "student_layer.hpp"

namespace modicum::retrofit {
namespace {

constexpr std::string_view kOp = "retrofit.survey";
constexpr std::size_t kSampledRows = 1024;
constexpr std::size_t kLongestSpan = 4;

/// What one layer's pass leaves behind.
struct LayerMoments {
  SecondMoments ffn, ffn_held_out;              ///< inner → output of the feed-forward layer
  SecondMoments attention_input, heads, input;  ///< Gram matrices of inputs: of q, k, v; of o; of gate, up
  KvStatistics kv;

  LayerMoments(const ModelConfig& c, DType dtype, const Chunks& chunks)
      : ffn(c.intermediate_size, c.hidden_size, dtype, chunks.rows(false)),
        ffn_held_out(c.intermediate_size, c.hidden_size, dtype, chunks.rows(true)),
        attention_input(c.hidden_size, 0, dtype, chunks.rows(false)),
        heads(c.query_width(), 0, dtype, chunks.rows(false)),
        input(c.hidden_size, 0, dtype, chunks.rows(false)),
        kv({c.num_attention_heads, c.num_key_value_heads, c.head_dim}) {}

  void finish(ThreadPool& pool) {
    for (SecondMoments* const m : {&ffn, &ffn_held_out, &attention_input, &heads, &input}) m->finish(pool);
  }
};

class Surveyor {
 public:
  Surveyor(const Checkpoint& from, const CalibrationTokens& calibration, const SurveyOptions& options,
           ThreadPool& pool, const Progress& progress)
      : config_(from.config()),
        weights_(ModelWeights::load(from)),
        options_(options),
        pool_(pool),
        progress_(progress),
        chunks_(calibration),
        hidden_(chunks_.all_rows() * config_.hidden_size) {
    ops::gather_rows(weights_.embedding, calibration.tokens, hidden_.data());
  }

  Survey run() {
    Survey out;
    sample();
    for (std::size_t layer = 0; layer < config_.num_hidden_layers; ++layer) {
      LayerMoments moments(config_, weights_.dtype, chunks_);
      read(layer, moments);
      moments.finish(pool_);
      out.layers.push_back(judge(layer, moments));
      sample();
    }
    report(progress_, kOp, config_.num_hidden_layers, config_.num_hidden_layers);
    out.angles = angles();
    return out;
  }

 private:
  void read(std::size_t layer, LayerMoments& moments) {
    LayerPass pass(config_, weights_.dtype, chunks_.sequences(), chunks_.length(), pool_);
    const LayerWeights& w = weights_.layers[layer];
    const std::size_t width = config_.hidden_size;
    const std::size_t window = config_.sliding_window.empty() ? 0 : config_.sliding_window[layer];
    std::vector<float> targets;
    for (const Chunk& chunk : chunks_.list()) {
      report(progress_, kOp, layer, config_.num_hidden_layers);
      float* const x = hidden_.data() + chunk.first_row * width;
      pass.project(w, x, chunk.sequences);
      if (!chunk.held_out) {
        moments.attention_input.add(pool_, pass.attention_input.data(), nullptr, chunk.rows);
        moments.kv.update(pool_, pass.q.data(), pass.k.data(), pass.v.data(), chunk.rows);
      }
      pass.attend(window);
      pass.close_attention(w, x);
      pass.open_ffn(w);
      pass.close_ffn(w);
      targets.resize(chunk.rows * width);
      for (std::size_t i = 0; i < targets.size(); ++i) targets[i] = pass.out[i] - pass.middle[i];
      const std::vector<float> factors = relative_factors(pass.out.data(), chunk.rows, width);
      SecondMoments& ffn = chunk.held_out ? moments.ffn_held_out : moments.ffn;
      ffn.add(pool_, pass.inner.data(), targets.data(), chunk.rows, factors);
      if (!chunk.held_out) {
        moments.heads.add(pool_, pass.heads.data(), nullptr, chunk.rows);
        moments.input.add(pool_, pass.ffn_input.data(), nullptr, chunk.rows);
      }
      std::copy_n(pass.out.data(), targets.size(), x);
    }
  }

  LayerSurvey judge(std::size_t layer, LayerMoments& moments) {
    LayerSurvey out;
    const LayerWeights& w = weights_.layers[layer];
    for (const std::size_t bits : options_.bits) out.bits[bits] = rounding_error(w, moments, bits);
    for (const std::size_t heads : options_.kv_heads) {
      const KvMerge merge = merge_kv(attention_weights(w, config_), moments.kv, {.kv_heads = heads});
      out.kv_scores[heads] = merge.score_error;
      out.kv_values[heads] = merge.value_error;
    }
    if (options_.widths.empty()) return out;
    const Moments fitted = std::move(moments.ffn).moments();
    const Moments held_out = std::move(moments.ffn_held_out).moments();
    const linalg::Matrix down = widened(w.down.weight);
    const std::size_t least = *std::min_element(options_.widths.begin(), options_.widths.end());
    const std::vector<std::size_t> order = removal_order(fitted, down, least, ChannelChoice::second_order);
    for (const std::size_t width : options_.widths) {
      std::vector<std::size_t> kept(order.end() - static_cast<std::ptrdiff_t>(width), order.end());
      std::sort(kept.begin(), kept.end());
      const linalg::Matrix w0 = down(Eigen::all, kept);
      const RidgeFit fit =
          ridge_select(moments_of(fitted, kept), moments_of(held_out, kept), w0, default_dampings());
      out.ffn[width] = fit.held_out_error;
    }
    return out;
  }

  double rounding_error(const LayerWeights& w, const LayerMoments& moments, std::size_t bits) const {
    double sum = 0;
    std::size_t count = 0;
    for (const Linear linear : kLinears) {
      const WeightView view = weights_of(w, linear).weight;
      if (view.cols % kQuantGroup != 0) continue;
      const SecondMoments& input = linear == Linear::o                              ? moments.heads
                                   : linear == Linear::down                         ? moments.ffn
                                   : linear == Linear::gate || linear == Linear::up ? moments.input
                                                                                    : moments.attention_input;
      const RoundOptions options{.bits = bits, .group = kQuantGroup, .scale_dtype = weights_.dtype};
      const RoundedMatrix rounded =
          round_nearest(floats_of(view), view.rows, view.cols, options, &input.moments().gram, pool_);
      sum += rounded.energy > 0 ? rounded.error / rounded.energy : 0;
      ++count;
    }
    return count == 0 ? 0 : sum / static_cast<double>(count);
  }

  /// Hidden states of some tokens as they are now.
  void sample() {
    const std::size_t rows = chunks_.all_rows(), width = config_.hidden_size;
    const std::size_t step = std::max<std::size_t>(1, rows / kSampledRows);
    std::vector<float>& sampled = samples_.emplace_back();
    for (std::size_t r = 0; r < rows; r += step) {
      const float* const row = hidden_.data() + r * width;
      sampled.insert(sampled.end(), row, row + width);
    }
  }

  std::vector<std::vector<double>> angles() const {
    std::vector<std::vector<double>> out;
    for (std::size_t n = 1; n <= std::min(kLongestSpan, config_.num_hidden_layers - 1); ++n) {
      std::vector<double>& row = out.emplace_back();
      for (std::size_t i = 0; i + n < samples_.size(); ++i)
        row.push_back(angle(samples_[i], samples_[i + n]));
    }
    return out;
  }

  double angle(const std::vector<float>& a, const std::vector<float>& b) const {
    const std::size_t width = config_.hidden_size;
    double sum = 0;
    for (std::size_t r = 0; r < a.size(); r += width) {
      double ab = 0, aa = 0, bb = 0;
      for (std::size_t c = r; c < r + width; ++c) {
        ab += static_cast<double>(a[c]) * b[c];
        aa += static_cast<double>(a[c]) * a[c];
        bb += static_cast<double>(b[c]) * b[c];
      }
      const double norm = std::sqrt(aa * bb);
      sum += norm > 0 ? std::acos(std::clamp(ab / norm, -1.0, 1.0)) / std::numbers::pi : 0;
    }
    return sum / static_cast<double>(a.size() / width);
  }

  const ModelConfig& config_;
  const ModelWeights weights_;
  const SurveyOptions& options_;
  ThreadPool& pool_;
  const Progress& progress_;
  const Chunks chunks_;
  LayerPass::Floats hidden_;
  std::vector<std::vector<float>> samples_;  ///< before each layer, and after the last
};

void check(const SurveyOptions& options, const ModelConfig& config) {
  for (const std::size_t width : options.widths) {
    if (width > 0 && width < config.intermediate_size) continue;
    fail({.op = kOp,
          .what = "width",
          .expected = "1 to " + std::to_string(config.intermediate_size - 1),
          .got = std::to_string(width)});
  }
}

}  // namespace

Survey survey(const Checkpoint& from, const CalibrationTokens& calibration, const SurveyOptions& options,
              ThreadPool& pool, const Progress& progress) {
  Plan widest;  // what all of its fits ask of the text
  widest.ffn = FfnEdit{};
  check(options, from.config());
  check_calibration(widest, from.config(), calibration);
  linalg::set_threads(pool.size());
  return Surveyor(from, calibration, options, pool, progress).run();
}

}  // namespace modicum::retrofit
