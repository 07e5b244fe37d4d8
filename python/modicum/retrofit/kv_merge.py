"""KV heads of one attention layer merged into fewer, in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from modicum import _core
from modicum._core import KvStatistics

__all__ = ["KvMerge", "KvStatistics", "merge_kv"]

Array = npt.NDArray[np.float64]
Method = Literal["complex_pca", "procrustes", "mean", "first"]
Grouping = Literal["found", "consecutive"]


@dataclass(frozen=True)
class KvMerge:
    """An attention layer with fewer KV heads.

    Attributes
    ----------
    q, k, v, o : float64 weights as a checkpoint holds them, [outputs, inputs]; o's bias stays as it was.
    q_bias, k_bias, v_bias : float64, None where there was none.
    groups : for each new KV head the old ones in it.
    query_heads : for each query head the old one that it comes from; those of a KV head stand together.
    score_error : lost energy of attention scores as a share, Σ E|ρ|² E|κ − κ̂|² / Σ E|ρ|² E|κ|².
    value_error : lost energy of what values add to the stream, Σ E‖W_O (v − v̂)‖² / Σ E‖W_O v‖².
    """

    q: Array
    k: Array
    v: Array
    o: Array
    q_bias: Array | None
    k_bias: Array | None
    v_bias: Array | None
    groups: list[list[int]]
    query_heads: list[int]
    score_error: float
    value_error: float


def merge_kv(
    q: npt.ArrayLike,
    k: npt.ArrayLike,
    v: npt.ArrayLike,
    o: npt.ArrayLike,
    statistics: KvStatistics,
    *,
    kv_heads: int,
    method: Method = "complex_pca",
    grouping: Grouping = "found",
    q_bias: npt.ArrayLike | None = None,
    k_bias: npt.ArrayLike | None = None,
    v_bias: npt.ArrayLike | None = None,
    qk_norm: bool = False,
) -> KvMerge:
    """Merges the KV heads of an attention layer with RoPE into `kv_heads`, without a gradient.

    The layer that comes out is of the same architecture: a standard checkpoint with another
    num_key_value_heads. Keys are mixed by complex numbers per frequency, the only mixes that commute with
    RoPE; values by any matrix, whose inverse goes into `o`.

    Parameters
    ----------
    q, k, v, o : weights [heads · d, D], [kv_heads · d, D] (twice) and [D, heads · d], in the half-split
        layout of Hugging Face checkpoints; computed in float64.
    statistics : of text that the layer read (:class:`KvStatistics`), with the numbers of heads.
    kv_heads : after the merge; divides what is there. With as many as before nothing changes.
    method : "complex_pca" loses least: the principal component of complex keys per frequency, weighted by
        queries' energy, and the principal components of values, weighted by `o`. "procrustes" turns heads
        towards each other and averages them (Jin et al. 2024, arXiv 2412.20677); "mean" averages (Ainslie et
        al. 2023, arXiv 2305.13245, with consecutive groups); "first" keeps each group's first head.
    grouping : "found" groups heads that lose least by it, by the losses of pairs; "consecutive" neighbours.
    q_bias, k_bias, v_bias : [outputs]. Where the layer has them, `statistics` must include them.
    qk_norm : whether the layer normalises queries and keys by head (Qwen3).

    Raises
    ------
    InvalidArgument
        For shapes that do not fit, numbers that are not finite, statistics of no token, and kv_heads that is
        0 or more than there are.
    Unsupported
        With QK-norm, which does not commute with mixes of heads, and for kv_heads that does not divide those
        that are there.

    Examples
    --------
    >>> statistics = mo.retrofit.KvStatistics(heads=8, kv_heads=8, head_dim=64)
    >>> statistics.update(q_rows, k_rows, v_rows)  # what q_proj, k_proj and v_proj put out
    >>> merged = mo.retrofit.merge_kv(q, k, v, o, statistics, kv_heads=2)
    """
    if kv_heads < 1:
        raise _core.InvalidArgument(f"[retrofit.merge_kv] kv_heads: expected at least 1, got {kv_heads}")
    return KvMerge(
        **_core.merge_kv(
            q,
            k,
            v,
            o,
            statistics,
            kv_heads=kv_heads,
            method=method,
            grouping=grouping,
            q_bias=q_bias,
            k_bias=k_bias,
            v_bias=v_bias,
            qk_norm=qk_norm,
        )
    )
