# SPDX-License-Identifier: Apache-2.0
"""Who shrinks what: the rows of retrofit.py's tables. A new variant is one line in `METHODS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

Who = Literal["modicum", "baseline", "llm-compressor", "auto-round", "mergekit"]
TABLES = ("ffn", "kv", "bits", "depth")
GROUP = 32  # columns that share a scale, for everybody


@dataclass(frozen=True)
class Amount:
    """How much goes: one table, in which all methods get the same."""

    table: str
    title: str
    values: dict[str, int] = field(hash=False)


@dataclass(frozen=True)
class Method:
    """`ask` makes of an amount what the process of `who` is asked for: a plan, or a function's arguments.

    `without` names the method that does the same without the refit, so that the share of the loss that the
    refit removes can be told; `reads` is whether the calibration text is looked at, else one seed is enough.
    """

    name: str
    table: str
    who: Who
    ask: Callable[[dict[str, int]], dict[str, Any]]
    without: str = ""
    reads: bool = True
    only: Callable[[dict[str, int]], bool] = lambda _: True

    @property
    def ours(self) -> bool:
        return self.who == "modicum"


def _ffn(**edit: str) -> Callable[[dict[str, int]], dict[str, Any]]:
    return lambda amount: {"ffn": {"intermediate_size": amount["width"], **edit}}


def _kv(**edit: str) -> Callable[[dict[str, int]], dict[str, Any]]:
    return lambda amount: {"kv": {"kv_heads": amount["heads"], **edit}}


def _bits(**edit: Any) -> Callable[[dict[str, int]], dict[str, Any]]:
    return lambda amount: {"quantize": {"bits": amount["bits"], "group": GROUP, **edit}}


def _depth(**edit: str) -> Callable[[dict[str, int]], dict[str, Any]]:
    return lambda amount: {"depth": {"first": amount["first"], "count": amount["count"], **edit}}


def _call(function: str, **more: Any) -> Callable[[dict[str, int]], dict[str, Any]]:
    return lambda amount: {"call": function, **amount, **more}


def _four(amount: dict[str, int]) -> bool:
    """Published recipes are for 4 bits; with 8 rounding to nearest is what everybody does."""
    return amount["bits"] == 4


METHODS = (
    Method("magnitude", "ffn", "baseline", _call("ffn_magnitude"), reads=False),
    Method("Wanda-sp", "ffn", "baseline", _call("ffn_wanda_sp")),
    Method("FLAP", "ffn", "baseline", _call("ffn_flap")),
    Method("modicum, no refit", "ffn", "modicum", _ffn(refit="none")),
    Method("modicum least squares", "ffn", "modicum", _ffn(refit="least_squares"), "modicum, no refit"),
    Method("modicum alternating", "ffn", "modicum", _ffn(refit="alternating"), "modicum, no refit"),
    Method("mean-pool", "kv", "baseline", _call("kv_mean_pool"), reads=False),
    Method("Procrustes, neighbours", "kv", "baseline", _call("kv_procrustes", search=False)),
    Method("Procrustes, search", "kv", "baseline", _call("kv_procrustes", search=True)),
    Method("modicum, no refit", "kv", "modicum", _kv(refit="none")),
    Method("modicum least squares", "kv", "modicum", _kv(refit="least_squares"), "modicum, no refit"),
    Method("nearest", "bits", "baseline", _call("rtn", group=GROUP), reads=False),
    Method("llm-compressor GPTQ", "bits", "llm-compressor", _call("gptq", group=GROUP), only=_four),
    Method("llm-compressor AWQ", "bits", "llm-compressor", _call("awq", group=GROUP), only=_four),
    Method("AutoRound", "bits", "auto-round", _call("auto_round", group=GROUP), only=_four),
    Method(
        "modicum nearest",
        "bits",
        "modicum",
        _bits(rounding="nearest", scaling="none"),
        reads=False,
    ),
    Method(
        "modicum AWQ",
        "bits",
        "modicum",
        _bits(rounding="nearest", scaling="awq"),
        "modicum nearest",
    ),
    Method("modicum GPTQ", "bits", "modicum", _bits(rounding="gptq", scaling="none"), "modicum nearest"),
    Method("modicum AWQ + GPTQ", "bits", "modicum", _bits(rounding="gptq", scaling="awq"), "modicum nearest"),
    Method("mergekit passthrough", "depth", "mergekit", _call("passthrough"), reads=False),
    Method("drop", "depth", "baseline", _call("depth_drop"), reads=False),
    Method("ReplaceMe", "depth", "baseline", _call("depth_replace_me")),
    Method("modicum, no refit", "depth", "modicum", _depth(refit="none"), reads=False),
    Method("modicum least squares", "depth", "modicum", _depth(refit="least_squares"), "modicum, no refit"),
    Method("modicum alternating", "depth", "modicum", _depth(refit="alternating"), "modicum, no refit"),
)


def widths(old: int, shares: tuple[float, ...] = (0.1, 0.2, 0.3)) -> list[int]:
    """Widths that near as much less, multiples of 64, or of 32 where the old one is no multiple of 64."""
    step = 64 if old % 64 == 0 else 32
    near = [step * max(1, round(old * (1 - share) / step)) for share in shares]
    return [width for width in dict.fromkeys(near) if width < old]


def amounts(config: dict[str, Any], layer: int, tables: tuple[str, ...] = TABLES) -> list[Amount]:
    """What is tried on a model of this configuration; `layer` is the one that goes."""
    old, found = config["intermediate_size"], []
    if "ffn" in tables:
        for width in widths(old):
            title = f"FFN {width} of {old} (-{1 - width / old:.0%})"
            found.append(Amount("ffn", title, {"width": width}))
    if "kv" in tables:
        heads = config.get("num_key_value_heads") or config["num_attention_heads"]
        for part in (2, 4):
            if heads % part == 0:
                title = f"KV heads {heads // part} of {heads}"
                found.append(Amount("kv", title, {"heads": heads // part}))
    if "bits" in tables:
        found += [Amount("bits", f"{bits} bits in groups of {GROUP}", {"bits": bits}) for bits in (8, 4)]
    if "depth" in tables and config["num_hidden_layers"] > 1:
        title = f"without layer {layer} of {config['num_hidden_layers']}"
        found.append(Amount("depth", title, {"first": layer, "count": 1}))
    return found
