"""Ways of merging, on numpy arrays: for tensors of any model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from modicum import _core
from modicum.solver import open_solver
from modicum.tune.plan import Input, MergePlan, Method, Setting

__all__ = ["Factors", "factorize", "keep_mask", "merge_arrays"]

Array = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Factors:
    """The best two factors of their rank of a matrix [rows, cols].

    Attributes
    ----------
    b, a : float32 [rows, rank] and [rank, cols], each with the square roots of the singular values.
    singular_values : all of the matrix's, descending; their tail is what `b @ a` loses.
    """

    b: npt.NDArray[np.float32]
    a: npt.NDArray[np.float32]
    singular_values: npt.NDArray[np.float64]


def merge_arrays(
    method: Method,
    arrays: Sequence[Array],
    base: Array | None = None,
    *,
    weights: Sequence[float] | None = None,
    density: Setting = 1.0,
    name: str = "",
    threads: int | None = None,
    **options: Any,
) -> npt.NDArray[np.float32]:
    """One tensor of several models merged: float32 of their shape.

    Parameters
    ----------
    arrays : the models' tensors, all of one shape.
    base : that differences are taken from and added to; of slerp the end at t = 0; None with linear.
    weights : of the models; None: 1 each.
    density, options : as in :class:`MergePlan` (`definition`, `lambda_`, `t`, `normalize`, `rescale`,
        `seed`).
    name : of the tensor, on which random masks depend.
    """
    if len(arrays) == 0:
        raise _core.InvalidArgument("[merge_arrays] arrays: expected at least one, got none")
    gamma = options.pop("gamma", 0.01)
    models = tuple(
        Input(str(i), weight=weight, density=density, gamma=gamma)
        for i, weight in enumerate(weights if weights is not None else [1.0] * len(arrays))
    )
    plan = MergePlan(method, models, base=None if base is None else "base", **options)
    return _core.merge_arrays(plan.to_json(), base, list(arrays), name=name, threads=threads or 0)


def keep_mask(
    count: int, density: float, *, name: str, model: int = 0, seed: int = 0
) -> npt.NDArray[np.bool_]:
    """Which of `count` elements of the tensor `name` DARE keeps of a plan's model number `model` (from 0)."""
    return _core.keep_mask(seed, name, model, count, density)


def factorize(matrix: Array, rank: int) -> Factors:
    """Truncated singular value decomposition of a matrix [rows, cols], in f64 (Eckart & Young 1936)."""
    open_solver()
    found = _core.factorize(matrix, rank)
    return Factors(found["b"], found["a"], np.asarray(found["singular_values"]))
