"""What a retrofit changes, as a value: read from JSON, written to it, compared."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from modicum import _core
from modicum._core import InvalidArgument

__all__ = ["Depth", "Ffn", "Kv", "LowRank", "Plan", "Quantize", "Window"]

Refit = Literal["least_squares", "alternating", "none"]


@dataclass(frozen=True)
class Ffn:
    """Feed-forward layers with fewer inner channels.

    Attributes
    ----------
    intermediate_size : the new width, a multiple of 64 (of 32 where the old one is no multiple of 64).
    choice : "second_order" (greedy by the loss after the best refit: optimal brain surgeon), "wanda"
        (‖w‖ · √E[x²]) or "magnitude".
    refit : "alternating" fits the up, gate and down projections in turns; "least_squares" the down projection
        alone; "none" drops the channels.
    """

    intermediate_size: int
    choice: Literal["second_order", "wanda", "magnitude"] = "second_order"
    refit: Refit = "alternating"


@dataclass(frozen=True)
class Kv:
    """Fewer key-value heads (grouped queries), and a cache that is as much smaller.

    Attributes
    ----------
    kv_heads : the new number, a divisor of the old one.
    refit : of the output projection.
    method : "complex_pca", or the baselines "procrustes" (Jin et al. 2024), "mean" (Ainslie et al. 2023) and
        "first".
    """

    kv_heads: int
    method: Literal["complex_pca", "procrustes", "mean", "first"] = "complex_pca"
    refit: Literal["least_squares", "none"] = "least_squares"


@dataclass(frozen=True)
class Depth:
    """Layers first … first + count − 1, counted from 0, go.

    With a refit, the feed-forward layer before them makes up for what they did.
    """

    first: int
    count: int = 1
    refit: Refit = "alternating"


@dataclass(frozen=True)
class Window:
    """Some layers, counted from 0, see only the last `window` positions.

    `refit` is that of their output projections.
    """

    window: int
    layers: tuple[int, ...]
    refit: Literal["least_squares", "none"] = "least_squares"


@dataclass(frozen=True)
class Quantize:
    """Linear layers as integers, in compressed-tensors' format.

    Attributes
    ----------
    bits : 4 or 8; `layer_bits` has those of layers that differ, `head_bits` those of the output head (None:
        it stays in floats).
    group : columns that share a scale, a multiple of 32; 0, with 8 bits: all of a row, and activations that
        are rounded to int8 as well (W8A8).
    rounding : "gptq" (Frantar et al. 2022) or "nearest".
    scaling : "none", "awq" (Lin et al. 2023) or "smooth" (Xiao et al. 2022): scales that are folded into the
        norms.
    """

    bits: int = 8
    group: int = 32
    rounding: Literal["gptq", "nearest"] = "gptq"
    scaling: Literal["none", "awq", "smooth"] = "none"
    layer_bits: dict[int, int] = field(default_factory=dict)
    head_bits: int | None = None


@dataclass(frozen=True)
class LowRank:
    """Linear layers as two factors: no standard form, runs in modicum alone.

    Attributes
    ----------
    modules : kinds of layers: "q_proj", …, "down_proj".
    keep : share of each matrix's parameters that is kept.
    """

    modules: tuple[str, ...]
    keep: float


@dataclass(frozen=True)
class Plan:
    """What to change; shapes are the same in every layer, as standard configurations want them.

    The edits of a layer are made in the order of the attributes, each on what the ones before left.

    >>> Plan(kv=Kv(2), ffn=Ffn(3648), quantize=Quantize(bits=4, head_bits=8))
    """

    depth: Depth | None = None
    window: Window | None = None
    kv: Kv | None = None
    ffn: Ffn | None = None
    low_rank: LowRank | None = None
    quantize: Quantize | None = None

    @property
    def needs_text(self) -> bool:
        """Whether anything is fitted: else a run goes without calibration."""
        rounded = self.quantize
        return (
            any(edit is not None for edit in (self.kv, self.ffn, self.low_rank))
            or any(edit is not None and edit.refit != "none" for edit in (self.depth, self.window))
            or (rounded is not None and (rounded.rounding, rounded.scaling) != ("nearest", "none"))
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it, with a "schema"; edits that there are not are left out."""
        edits = {name: _json_edit(edit) for name, edit in vars(self).items() if edit is not None}
        return {"schema": "modicum.retrofit.plan/1", **edits}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, plan: dict[str, Any]) -> Plan:
        """Raises FormatError for what is no plan, naming the field."""
        whole = json.loads(_core.retrofit_plan(json.dumps(plan)))
        kinds: dict[str, Any] = {
            "depth": Depth,
            "window": Window,
            "kv": Kv,
            "ffn": Ffn,
            "low_rank": LowRank,
            "quantize": Quantize,
        }
        edits = {name: kinds[name](**_python_edit(edit)) for name, edit in whole.items() if name in kinds}
        return cls(**edits)

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """From a JSON file. Raises IoError, FormatError."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise _core.IoError(f"[plan] reading {str(path)!r}, failed: {error}") from error
        return cls.from_dict(json.loads(_core.retrofit_plan(text)))

    def __bool__(self) -> bool:
        return any(edit is not None for edit in vars(self).values())

    def __str__(self) -> str:
        """One line, as tables show it."""
        return ", ".join(self._words()) or "nothing"

    def _words(self) -> list[str]:
        words = []
        if self.depth:
            last = self.depth.first + self.depth.count - 1
            words.append(
                f"without layer{'s' if self.depth.count > 1 else ''} {self.depth.first}"
                + (f"-{last}" if self.depth.count > 1 else "")
            )
        if self.window:
            words.append(f"window {self.window.window} in {len(self.window.layers)} layers")
        if self.kv:
            words.append(f"{self.kv.kv_heads} KV head{'s' if self.kv.kv_heads > 1 else ''}")
        if self.ffn:
            words.append(f"FFN {self.ffn.intermediate_size}")
        if self.low_rank:
            words.append(f"low rank {self.low_rank.keep:.0%} of {', '.join(self.low_rank.modules)}")
        if self.quantize:
            words.append(_quantize_words(self.quantize))
        return words


def _quantize_words(edit: Quantize) -> str:
    words = f"int{edit.bits} {edit.rounding}"
    if edit.scaling != "none":
        words += f" {edit.scaling}"
    if edit.layer_bits:
        count = len(edit.layer_bits)
        words += f" ({count} layer{'s' if count > 1 else ''} with other bits)"
    return words + (f", head int{edit.head_bits}" if edit.head_bits else "")


def _json_edit(edit: Any) -> dict[str, Any]:
    values = asdict(edit)
    if isinstance(edit, Quantize):
        values["layer_bits"] = {str(layer): bits for layer, bits in edit.layer_bits.items()}
        if edit.head_bits is None:
            del values["head_bits"]
    return values


def _python_edit(edit: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in edit.items()
    }
    if "layer_bits" in values:
        values["layer_bits"] = {int(layer): bits for layer, bits in values["layer_bits"].items()}
    return values


def as_plan(plan: Plan | dict[str, Any] | str | Path) -> Plan:
    """A plan, its dict, or the path of its JSON."""
    if isinstance(plan, Plan):
        return plan
    if isinstance(plan, dict):
        return Plan.from_dict(plan)
    if isinstance(plan, str | Path):
        return Plan.load(plan)
    raise InvalidArgument(f"[plan] plan: expected a Plan, a dict or a path, got {type(plan).__name__}")
