"""Weights of one linear layer to integers, on plain arrays, and as compressed-tensors stores them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modicum import _core
from modicum._core import InvalidArgument

__all__ = ["Group", "Rounded", "gptq", "packed_tensors", "quantization_config", "round_nearest"]

Group = int | Literal["channel"]
ScaleDtype = Literal["f32", "bf16", "f16"]


class Rounded(NamedTuple):
    """Integers for a layer's weights W [rows, cols], and what they cost.

    Attributes
    ----------
    integers : int8 [rows, cols].
    scales : float32 [rows, groups]; W[r, c] ≈ integers[r, c] · scales[r, c // (cols / groups)].
    error : tr(ΔW G ΔWᵀ), ΔW = W − Ŵ: with a Gram G = E[x xᵀ], the mean square error of the outputs, summed.
    energy : tr(W G Wᵀ), the outputs themselves; without a Gram both are sums of squares of weights.
    """

    integers: NDArray[np.int8]
    scales: NDArray[np.float32]
    error: float
    energy: float

    def dequantize(self) -> NDArray[np.float32]:
        """Ŵ, float32 [rows, cols]."""
        group = self.integers.shape[1] // self.scales.shape[1]
        return self.integers.astype(np.float32) * np.repeat(self.scales, group, axis=1)


def round_nearest(
    weights: ArrayLike,
    gram: ArrayLike | None = None,
    *,
    bits: int = 4,
    group: Group = 32,
    scale_dtype: ScaleDtype = "bf16",
    threads: int | None = None,
) -> Rounded:
    """Rounds each weight to the nearest integer of its group; `gram` serves the report only.

    Of 15 scales for a group, the one with the least squared error.

    Parameters
    ----------
    weights : [rows, cols], taken as float32.
    gram : E[x xᵀ] of the layer's input, [cols, cols], taken as float64.
    bits : 2 to 8; checkpoints hold 4 and 8.
    group : columns that share a scale, a multiple of 32 that divides cols; or "channel": all of a row.
    scale_dtype : what holds each scale exactly: "bf16", "f16" or "f32".
    threads : None means every processor that this process may use; the result is the same.

    Raises
    ------
    InvalidArgument
        For shapes, bits or groups that do not fit, weights that are not finite, and a Gram that is not
        finite, symmetric or of the layer's columns.
    """
    return Rounded(
        *_core.round_nearest(
            _floats("round_nearest", weights),
            None if gram is None else np.asarray(gram, np.float64),
            bits=check_count("round_nearest", "bits", bits),
            group=columns_of("round_nearest", group),
            scale_dtype=scale_dtype,
            threads=_threads("round_nearest", threads),
        )
    )


def gptq(
    weights: ArrayLike,
    gram: ArrayLike,
    *,
    bits: int = 4,
    group: Group = 32,
    act_order: bool = False,
    damping: float = 0.01,
    scale_dtype: ScaleDtype = "bf16",
    threads: int | None = None,
) -> Rounded:
    """GPTQ: rounds column after column and lets later columns make up for the error (Frantar et al. 2022).

    arXiv 2210.17323. Needs cols³ / 3 operations in float64 and 5 · rows · cols² in float32; 16 cols² +
    4 rows · (2 cols + 256) bytes beside arguments and result.

    Parameters
    ----------
    weights : [rows, cols], taken as float32.
    gram : E[x xᵀ] of the layer's input, [cols, cols], taken as float64.
    act_order : columns in descending order of their inputs' energy. Scales are then found beforehand ("static
        groups"), so a checkpoint needs no g_idx.
    damping : added to the Gram's diagonal, as a share of its mean.
    bits, group, scale_dtype, threads : as in :func:`round_nearest`.

    Raises
    ------
    InvalidArgument
        As :func:`round_nearest`, and where the damped Gram is not positive definite.
    """
    return Rounded(
        *_core.gptq(
            _floats("gptq", weights),
            np.asarray(gram, np.float64),
            bits=check_count("gptq", "bits", bits),
            group=columns_of("gptq", group),
            act_order=act_order,
            damping=damping,
            scale_dtype=scale_dtype,
            threads=_threads("gptq", threads),
        )
    )


def packed_tensors(
    module: str, rounded: Rounded, *, bits: int, group: Group, scale_dtype: ScaleDtype = "bf16"
) -> dict[str, NDArray[Any]]:
    """The tensors of the linear layer `module` as compressed-tensors stores them, by name.

    Bits and group are those that it was rounded with: "channel" becomes "int-quantized", groups
    "pack-quantized". Scales of "bf16" come as the
    uint16 that hold their bits, as numpy has no such type: `torch.from_numpy(t).view(torch.bfloat16)`.

    Raises
    ------
    InvalidArgument
        For bits other than 4 and 8, integers beyond them, and groups that no checkpoint has.
    """
    tensors = _core.pack_linear(
        rounded.integers,
        rounded.scales,
        bits=check_count("packed_tensors", "bits", bits),
        group=columns_of("packed_tensors", group),
        scale_dtype=scale_dtype,
    )
    rows, cols = rounded.integers.shape
    of_scales = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}[scale_dtype]
    scales = np.frombuffer(tensors[1], of_scales).reshape(rounded.scales.shape)
    if group == "channel":
        weight = np.frombuffer(tensors[0], np.int8).reshape(rows, cols)
        return {f"{module}.weight": weight, f"{module}.weight_scale": scales}
    return {
        f"{module}.weight_packed": np.frombuffer(tensors[0], np.int32).reshape(rows, -1),
        f"{module}.weight_scale": scales,
        f"{module}.weight_shape": np.frombuffer(tensors[2], np.int64),
    }


def quantization_config(
    modules: Mapping[str, tuple[int, Group]], ignore: Iterable[str] = ("lm_head",)
) -> dict[str, Any]:
    """config.json's `quantization_config` for modules with (bits, group) each; `ignore` stay in floats.

    Layers may differ; but modicum reads q, k and v, and gate and up, of one layer in one format only.
    """
    layouts = [
        (name, check_count("quantization_config", "bits", bits), columns_of("quantization_config", group))
        for name, (bits, group) in modules.items()
    ]
    config: dict[str, Any] = json.loads(_core.quantization_json(layouts, list(ignore)))
    return config


def _floats(op: str, weights: ArrayLike) -> NDArray[np.float32]:
    array: NDArray[np.float32] = np.asarray(weights, np.float32)
    if array.ndim != 2:
        raise InvalidArgument(f"[retrofit.{op}] weights: expected [rows, cols], got {array.ndim} dimensions")
    return array


def check_count(op: str, name: str, value: int) -> int:
    """`value` where it is at least 1; else InvalidArgument."""
    if value < 1:
        raise InvalidArgument(f"[retrofit.{op}] {name}: expected at least 1, got {value}")
    return value


def _threads(op: str, threads: int | None) -> int:
    return 0 if threads is None else check_count(op, "threads", threads)


def columns_of(op: str, group: Group) -> int:
    """As the compiled part counts them: 0 for a whole row."""
    if group == "channel":
        return 0
    if isinstance(group, str):
        raise InvalidArgument(f"[retrofit.{op}] group: expected a multiple of 32 or 'channel', got {group!r}")
    return check_count(op, "group", group)
