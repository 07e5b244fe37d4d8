"""Scales of input channels that make linear layers lose less when they are rounded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modicum import _core
from modicum._core import InvalidArgument
from modicum.retrofit.rounding import Group, ScaleDtype, check_count, columns_of

__all__ = ["AwqScales", "awq_scales", "grouped_query_sources", "smooth_scales"]


class AwqScales(NamedTuple):
    """What :func:`awq_scales` found.

    Attributes
    ----------
    scales : float32, one for each source of channels.
    alpha : the exponent; 0 means that no scales are better.
    error : of the outputs after rounding to nearest, Σ tr(ΔW G ΔWᵀ), ΔW = W − round(W · s) / s.
    unscaled_error : the same without scales.
    """

    scales: NDArray[np.float32]
    alpha: float
    error: float
    unscaled_error: float


def awq_scales(
    weights: ArrayLike | Sequence[ArrayLike],
    gram: ArrayLike,
    magnitudes: ArrayLike | None = None,
    *,
    bits: int = 4,
    group: Group = 32,
    sources: ArrayLike | None = None,
    scale_dtype: ScaleDtype = "bf16",
    threads: int | None = None,
) -> AwqScales:
    """Activation-aware scales s = m^α: of 20 α in [0, 1) those whose outputs lose least (Lin et al. 2023).

    arXiv 2306.00978. Columns of `weights` are to be multiplied by s, and what produces their input divided
    by it: a norm's weight (for q, k, v or gate, up), rows and bias of v (for o) or rows of up (for down).
    The function of floats stays as it was; the Gram becomes G / (s sᵀ).

    Parameters
    ----------
    weights : one matrix [rows, cols] or several that share their input, taken as float32.
    gram : E[x xᵀ] of that input, [cols, cols], taken as float64.
    magnitudes : mean |x| of each channel, [cols]; None takes the root mean square, √(diag G).
    sources : channels of one source share a scale, [cols] (:func:`grouped_query_sources`); None: each has
        its own.
    bits, group, scale_dtype, threads : as in :func:`modicum.retrofit.round_nearest`.

    Raises
    ------
    InvalidArgument
        For shapes, bits or groups that do not fit, and values that are not finite.
    """
    return AwqScales(
        *_core.awq_scales(
            _matrices(weights),
            np.asarray(gram, np.float64),
            None if magnitudes is None else np.asarray(magnitudes, np.float32),
            bits=check_count("awq_scales", "bits", bits),
            group=columns_of("awq_scales", group),
            sources=_sources(sources),
            scale_dtype=scale_dtype,
            threads=0 if threads is None else check_count("awq_scales", "threads", threads),
        )
    )


def smooth_scales(
    weights: ArrayLike | Sequence[ArrayLike],
    largest: ArrayLike,
    *,
    alpha: float = 0.5,
    sources: ArrayLike | None = None,
) -> NDArray[np.float32]:
    """SmoothQuant's scales max|x|^α / max|w|^(1−α), for inputs that become int8 too (Xiao et al. 2022).

    arXiv 2211.10438. To be folded as those of :func:`awq_scales`. 1 where inputs or weights are all 0.

    Parameters
    ----------
    weights : one matrix [rows, cols] or several that share their input.
    largest : max |x| of each channel, [cols].
    alpha : 0 to 1; how much of the inputs' range moves to the weights.
    sources : as in :func:`awq_scales`.

    Raises
    ------
    InvalidArgument
        For shapes that do not fit, an α out of range, and values that are not finite.
    """
    return _core.smooth_scales(
        _matrices(weights), np.asarray(largest, np.float32), alpha=alpha, sources=_sources(sources)
    )


def grouped_query_sources(query_heads: int, kv_heads: int, head_dim: int) -> NDArray[np.int64]:
    """The row of v_proj that each column of o_proj reads, int64 [query_heads · head_dim].

    Raises
    ------
    InvalidArgument
        Where query_heads is no multiple of kv_heads.
    """
    counts = {"query_heads": query_heads, "kv_heads": kv_heads, "head_dim": head_dim}
    checked = {name: check_count("grouped_query_sources", name, count) for name, count in counts.items()}
    return np.asarray(_core.grouped_query_sources(**checked), np.int64)


def _matrices(weights: ArrayLike | Sequence[ArrayLike]) -> list[NDArray[np.float32]]:
    if isinstance(weights, (list, tuple)) and all(np.ndim(matrix) == 2 for matrix in weights):
        return [np.asarray(matrix, np.float32) for matrix in weights]
    return [np.asarray(weights, np.float32)]


def _sources(sources: ArrayLike | None) -> list[int]:
    if sources is None:
        return []
    array = np.asarray(sources, np.int64)
    if array.ndim != 1 or (array < 0).any():
        raise InvalidArgument("[retrofit.scales] sources: expected [cols], at least 0, got something else")
    return [int(source) for source in array]
