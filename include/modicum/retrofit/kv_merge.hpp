// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <vector>

#include <modicum/linalg/dense.hpp>
#include <modicum/retrofit/kv_statistics.hpp>

namespace modicum::retrofit {

/// The projections of one attention layer, f64. Eigen stores them column by column; element (r, c) is that of
/// the checkpoint's [outputs, inputs]. With D the hidden size and d the head dimension:
struct AttentionWeights {
  HeadShape shape;
  bool qk_norm = false;   ///< keys and queries are normalised before RoPE (Qwen3)
  linalg::Matrix q;       ///< [heads · d, D]
  linalg::Matrix k, v;    ///< [kv_heads · d, D]
  linalg::Matrix o;       ///< [D, heads · d]; its bias stays as it is
  linalg::Vector q_bias;  ///< [heads · d] or empty, as are the others
  linalg::Vector k_bias;
  linalg::Vector v_bias;
};

/// How the keys and values of a group of heads become those of one.
enum class KvMergeMethod {
  complex_pca,  ///< the complex principal component of keys by frequency, the principal components of values
  procrustes,   ///< heads are turned towards each other, then averaged (Jin et al. 2024, arXiv 2412.20677)
  mean,         ///< averaged (Ainslie et al. 2023, arXiv 2305.13245, whose groups are consecutive)
  first,        ///< those of the group's first head
};

/// Which heads become one.
enum class KvGrouping {
  found,        ///< those that lose least by it: greedily by the losses of pairs, then by swaps
  consecutive,  ///< neighbours
};

struct KvMergeOptions {
  std::size_t kv_heads = 0;  ///< after the merge
  KvMergeMethod method = KvMergeMethod::complex_pca;
  KvGrouping grouping = KvGrouping::found;
};

/// A layer with fewer KV heads, and what that loses on the text of the statistics.
struct KvMerge {
  AttentionWeights weights;
  /// For each new KV head the old ones in it, ascending; groups are ordered by their first head.
  std::vector<std::vector<std::size_t>> groups;
  /// For each query head the old one that it comes from: those of a group stand together.
  std::vector<std::size_t> query_heads;
  /// Σ E|ρ_q,f|² E|κ_h,f − κ̂_h,f|² over query heads and frequencies, as a share of the same without κ̂:
  /// scores' energy that is lost where queries do not depend on keys.
  double score_error = 0.0;
  /// Σ E‖W_O,q (v_h − v̂_h)‖² over query heads, as a share of the same without v̂.
  double value_error = 0.0;
};

/// Merges KV heads without a gradient, into a layer of the same architecture.
///
/// Keys, complex_pca: RoPE commutes with complex numbers that multiply a frequency, and with mixes of heads
/// at one frequency. Of all κ̂_h = c_h κ̄ with κ̄ = Σ_h w̄_h κ_h, the one that loses least score energy is
/// the top eigenvector u of diag(a) E[κ κᴴ] diag(a), a_h² = Σ_q E|ρ_q|² over the queries of head h: κ̄ =
/// uᴴ diag(a) κ. Rows of W_K (and its bias) are mixed by w, queries are multiplied by c̄_h. κ̄ has the mean
/// energy of the keys that it stands for, so caches of few bits keep their scales.
///
/// Values, complex_pca: with P_h = Σ_q W_O,qᵀ W_O,q and Δ = blkdiag(P_h^½), the top d eigenvectors E of
/// Δ E[v vᵀ] Δ give v̄ = Eᵀ Δ v and v̂_h = Δ_h⁺ E_h v̄, which goes into W_O.
///
/// What is lost is the sum of the eigenvalues that were left out; heads that are copies of each other up to
/// phases (keys) and invertible maps (values) merge exactly. With kv_heads as they were, nothing changes.
///
/// Throws `InvalidArgument` for kv_heads of 0 or more than there are, shapes that do not fit, weights or
/// statistics that are not finite, and statistics of no token; `Unsupported` for QK-norm, which does not
/// commute with mixes, and for kv_heads that do not divide those of the layer.
KvMerge merge_kv(const AttentionWeights& weights, const KvStatistics& statistics,
                 const KvMergeOptions& options);

}  // namespace modicum::retrofit
