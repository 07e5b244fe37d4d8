"""The steps of choosing a token, callable on plain arrays."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from modicum import _core

__all__ = ["warp"]


def warp(
    logits: npt.ArrayLike,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> npt.NDArray[np.float32]:
    """Logits over the temperature, -inf for tokens that the filters remove, in transformers' order.

    Parameters
    ----------
    logits : float32 [vocabulary].
    top_k : keep the k likeliest and those equal to the k-th; 0 keeps all.
    top_p : keep the fewest tokens whose probabilities reach it (Holtzman et al. 2020); 1 keeps all.
    min_p : keep tokens at least this times as likely as the likeliest (Nguyen et al. 2024); 0 keeps all.
    """
    array = np.asarray(logits, dtype=np.float32)
    return _core.warp(array, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
