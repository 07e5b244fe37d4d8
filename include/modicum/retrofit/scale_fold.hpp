// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include <modicum/base/thread_pool.hpp>
#include <modicum/linalg/dense.hpp>
#include <modicum/retrofit/round_matrix.hpp>

/// A linear layer's input channels multiplied by scales, and what produces that input divided by them: the
/// same function of floats, and one that is rounded with less harm. The scales of channel c are folded into
/// weights on both sides, so nothing is left of them at run time:
///
///     norm → q, k, v or gate, up     the norm's weight / s,        columns of the matrices · s
///     v → o                          rows of v (and bias) / s,     columns of o · s
///     up → down                      rows of up (and bias) / s,    columns of down · s
///
/// v → o goes through attention, which mixes tokens and not channels; the query heads that share a head of
/// keys and values share its scales (`grouped_query_sources`). up → down holds as down reads silu(gate) · up.
namespace modicum::retrofit {

/// A linear layer's weights, f32, row-major, [rows, values.size() / rows].
struct LinearView {
  std::span<const float> values;
  std::size_t rows = 0;
};

/// Column c of a matrix is scaled by scales[sources[c]]; empty: by scales[c].
using FoldSources = std::vector<std::size_t>;

/// Sources of o_proj's columns, [query_heads · head_dim], in v_proj's rows, [kv_heads · head_dim]. Throws
/// `InvalidArgument` where query_heads is no multiple of kv_heads.
FoldSources grouped_query_sources(std::size_t query_heads, std::size_t kv_heads, std::size_t head_dim);

/// What `awq_scales` found.
struct AwqScales {
  std::vector<float> scales;  ///< a positive number for each channel
  double alpha = 0;           ///< 0: none is better than no scales
  double error = 0;           ///< Σ over matrices of tr(ΔW G ΔWᵀ), ΔW = W − round(W · s) / s
  double unscaled_error = 0;  ///< the same with s = 1
};

/// Activation-aware weight quantisation (Lin et al. 2023, arXiv 2306.00978): of the 20 scales s = m^α, α = 0,
/// 1/20, …, 19/20, divided by √(max s · min s), those with the least error of the outputs after rounding to
/// nearest. `matrices` share an input of `gram.cols()` channels with second moments `gram`. m is the mean
/// magnitude of a channel, `magnitudes`; where that is empty, its root mean square, √(diag G). Channels of
/// one source have one scale, of their mean m; one whose m is 0 counts as the least of the others.
///
/// Time: 20 times that of `round_nearest` on each matrix. Bit-identical for any number of threads. Memory:
/// that of `output_energy` and a copy of the largest matrix. Throws `InvalidArgument` as `round_nearest`, and
/// where magnitudes or sources do not fit the channels.
AwqScales awq_scales(std::span<const LinearView> matrices, const linalg::Matrix& gram,
                     std::span<const float> magnitudes, const RoundOptions& options, ThreadPool& pool,
                     const FoldSources& sources = {});

/// SmoothQuant (Xiao et al. 2022, arXiv 2211.10438), for activations that become int8 as well: s = max|x|^α /
/// max|w|^(1−α) for each channel, x its inputs, `largest` = max|x|, and w its column in all `matrices`. Of
/// the channels of one source both maxima are taken. Where one of them is 0 the scale is 1; none is below
/// 1e-5. Throws `InvalidArgument` where α is not in 0 … 1, shapes do not fit or a value is not finite.
std::vector<float> smooth_scales(std::span<const LinearView> matrices, std::span<const float> largest,
                                 double alpha = 0.5, const FoldSources& sources = {});

/// values[c] /= scales[c]: a norm's weight, or a bias of the layer before.
void divide_channels(std::span<float> values, std::span<const float> scales);

/// Row r of `weights` [scales.size(), cols] divided by scales[r]: of v or up.
void divide_rows(std::span<float> weights, std::span<const float> scales);

/// Column c of `weights` [rows, cols] multiplied by its source's scale.
void scale_columns(std::span<float> weights, std::size_t rows, std::span<const float> scales,
                   const FoldSources& sources = {});

/// G of the divided input: G[i, j] / (s_i s_j), in place. What is rounded after a fold needs it.
void divide_gram(linalg::Matrix& gram, std::span<const float> scales, const FoldSources& sources = {});

}  // namespace modicum::retrofit
