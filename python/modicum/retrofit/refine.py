"""One feed-forward layer made to give its targets more nearly, in closed form and without a gradient step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modicum import _core

__all__ = ["RefineReport", "RefinedFfn", "refine_ffn"]

Array = NDArray[np.float32]


class RefineReport(TypedDict):
    """Relative errors Σ w² ‖t − y‖² / Σ w² ‖t‖², and the steps of conjugate gradients that were taken.

    Of the layer with its weights rounded to the dtype: the first two on the fitted rows that iterations use
    (`max_rows`), the others on all that are held out.
    """

    error_before: float
    error_after: float
    held_out_before: float
    held_out_after: float
    iterations: int


class RefinedFfn(NamedTuple):
    """Weights float32 [k, D], [k, D] and [D, k], and how well they do."""

    gate: Array
    up: Array
    down: Array
    report: RefineReport


def refine_ffn(
    x: ArrayLike,
    targets: ArrayLike,
    gate: ArrayLike,
    up: ArrayLike,
    down: ArrayLike,
    *,
    held_out: int,
    rounds: int = 2,
    iterations: int = 8,
    damping: float = 1e-3,
    factors: ArrayLike | None = None,
    gate_bias: ArrayLike | None = None,
    up_bias: ArrayLike | None = None,
    down_bias: ArrayLike | None = None,
    max_rows: int = 16384,
    dtype: Literal["f32", "bf16"] = "f32",
    threads: int | None = None,
    progress: Callable[[str, int, int], bool | None] | None = None,
) -> RefinedFfn:
    """Refines y = down (silu(gate x) · (up x)) towards `targets` by alternating least squares.

    For fixed gate activations y is linear in `up`; a Gauss-Newton step makes it linear in `gate`; and it is
    linear in `down`. A round fits all three, each from where it is: `up` and `gate` by conjugate gradients
    (Hestenes and Stiefel 1952) with a Kronecker preconditioner as of K-FAC (Martens and Grosse 2015, arXiv
    1503.05671), `down` by ridge regression. Held-out rows decide which iterate stays, so the layer never gets
    worse on them; where nothing helps the weights come back as they were.

    Worth it after channels of a layer were removed and `down` was refitted, which leaves `gate` and `up`
    unchanged. Weights come back as float32: round them to what the checkpoint stores.

    Parameters
    ----------
    x : [rows, D], what the layer reads (normalised) in the model that will have it.
    targets : [rows, D] for its output, say the original's hidden states less the residual stream here.
    gate, up, down : [k, D], [k, D] and [D, k].
    held_out : of the rows, that many last ones only judge.
    rounds : of up, gate and down.
    iterations : for `up` and for `gate` in a round, at most; fewer where another one would hardly help.
    damping : of these, as a share of the mean curvature.
    factors : [rows], roots of the rows' weights; None means 1.
    gate_bias, up_bias, down_bias : [k], [k] and [D], which stay as they are; None means none.
    max_rows : fitted rows that `up` and `gate` use, evenly spaced; 0 means all. `down` is at last fitted on
        all.
    dtype : of products' inputs: "bf16" as a bfloat16 model's, several times faster where the processor has
        such products.
    threads : None means every processor that this process may use; the result is the same.
    progress : called with (stage, done, total); returning False cancels.

    Raises
    ------
    InvalidArgument
        For shapes that do not fit, `held_out` of 0 or all rows, and damping below 0.
    FormatError
        For rows or weights that lead to NaN or infinity.
    Cancelled
        Where `progress` returned False.

    Examples
    --------
    >>> gate, up, down, report = mo.retrofit.refine_ffn(x, targets, gate, up, down, held_out=2048)
    >>> report["held_out_before"], report["held_out_after"]
    """
    for name, value, least in (
        ("held_out", held_out, 1),
        ("rounds", rounds, 0),
        ("iterations", iterations, 0),
        ("max_rows", max_rows, 0),
        ("threads", 1 if threads is None else threads, 1),
    ):
        if value < least:
            raise _core.InvalidArgument(
                f"[retrofit.refine_ffn] {name}: expected at least {least}, got {value}"
            )
    if dtype not in ("f32", "bf16"):
        raise _core.InvalidArgument(f"[retrofit.refine_ffn] dtype: expected 'f32' or 'bf16', got {dtype!r}")
    return RefinedFfn(
        *_core.refine_ffn(
            x,
            targets,
            gate,
            up,
            down,
            factors=factors,
            gate_bias=gate_bias,
            up_bias=up_bias,
            down_bias=down_bias,
            held_out=held_out,
            rounds=rounds,
            iterations=iterations,
            damping=damping,
            max_rows=max_rows,
            dtype=dtype,
            threads=threads or 0,
            progress=progress,
        )
    )
