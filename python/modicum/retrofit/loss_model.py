"""What a plan will lose, from errors of single layers and the measured losses of a few trials."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from modicum.retrofit.plan import Plan, Quantize
from modicum.retrofit.plan_costs import kept_layers, layer_bits

__all__ = ["KV_INT8_KL", "ErrorCurves", "LossModel", "Trial"]

#: What keeping keys and values as int8 costs: of the order that caches in int8 show in `modicum cag`, and
#: llama.cpp's q8_0 (+0.035 % perplexity for Llama-3-8B). Assumed, not measured on the model in hand.
KV_INT8_KL = 1e-4


@dataclass(frozen=True)
class Trial:
    """A plan that was carried out with little text, and what it lost on held-out text.

    Attributes
    ----------
    kl : mean over tokens, in nats.
    perplexity_ratio, top1_agreement : as :class:`modicum.retrofit.Comparison` has them; None where unknown.
    """

    plan: Plan
    kl: float
    kl_standard_error: float | None = None
    bytes: int | None = None
    perplexity_ratio: float | None = None
    top1_agreement: float | None = None


class ErrorCurves:
    """Errors of each layer's edits by amount, none of which shrinks as an edit grows.

    Parameters
    ----------
    survey : as `_core.retrofit_survey` gives it: for each layer "ffn" by width, "kv" by heads and "bits", all
        relative to the energy of what they should be, and "angles", whose row n - 1 has in column i the
        angular distance that layers i to i + n - 1 turn a hidden state by.
    width, kv_heads : of the source.
    """

    def __init__(self, survey: dict[str, Any], *, width: int, kv_heads: int) -> None:
        self.width, self.kv_heads = width, kv_heads
        layers = sorted(survey["layers"], key=lambda layer: layer["layer"])
        self.layers = len(layers)
        self.angles: list[list[float]] = survey["angles"]
        self._ffn = [_Falling(width, {int(w): float(e) for w, e in layer["ffn"].items()}) for layer in layers]
        self._kv = [
            _Falling(kv_heads, {int(h): float(e["score"] + e["value"]) for h, e in layer["kv"].items()})
            for layer in layers
        ]
        self._bits = [{int(b): max(0.0, float(e)) for b, e in layer["bits"].items()} for layer in layers]

    def first_of(self, count: int) -> int:
        """The span of `count` layers that turns hidden states least; the first layer stays."""
        angles = self.angles[count - 1][: self.layers - count + 1]
        return 1 + int(np.argmin(angles[1:]))

    def eight_bits_first(self) -> list[int]:
        """Layers in the order in which they gain by 8 bits instead of 4.

        All have the same bytes, so that the order by error is that by error per byte.
        """
        gain = [e.get(4, 0.0) - e.get(8, 0.0) for e in self._bits]
        return sorted(range(self.layers), key=lambda layer: (-gain[layer], layer))

    def of(self, plan: Plan) -> dict[str, float]:
        """The sum over layers of the error of each kind of edit in the plan."""
        kept = kept_layers(plan, self.layers)
        errors: dict[str, float] = {}
        if plan.depth:
            errors["depth"] = float(self.angles[plan.depth.count - 1][plan.depth.first])
        if plan.kv:
            errors["kv"] = sum(self._kv[i](plan.kv.kv_heads) for i in kept)
        if plan.ffn:
            errors["ffn"] = sum(self._ffn[i](plan.ffn.intermediate_size) for i in kept)
        if plan.quantize:
            bits = layer_bits(plan, self.layers)
            errors[f"quantize {plan.quantize.rounding}"] = sum(
                self._bits[i].get(b, 0.0) for i, b in bits.items() if b is not None
            )
        return errors


class _Falling:
    """An error by width or heads: 0 at `whole`, linear between known points, never less for fewer."""

    def __init__(self, whole: int, known: dict[int, float]) -> None:
        amounts = sorted((a for a in known if a < whole), reverse=True)
        worst = np.maximum.accumulate([0.0, *(known[a] for a in amounts)])
        self.amounts: npt.NDArray[np.float64] = np.array([whole, *amounts], np.float64)[::-1]
        self.errors: npt.NDArray[np.float64] = np.asarray(worst)[::-1]

    def __call__(self, amount: int) -> float:
        return float(np.interp(amount, self.amounts, self.errors))


@dataclass(frozen=True)
class _Curve:
    """KL by error: through (0, 0) and what was measured, never falling, beyond the last with its slope."""

    points: list[tuple[float, float]]

    @classmethod
    def of(cls, measured: Iterable[tuple[float, float]]) -> _Curve:
        points = [(0.0, 0.0)]
        for error, kl in sorted((max(e, 0.0), max(k, 0.0)) for e, k in measured):
            points.append((error, max(kl, points[-1][1])))
        return cls(points)

    def __call__(self, error: float) -> float:
        errors, kls = zip(*self.points, strict=True)
        last = errors[-1]
        if error <= last:
            return float(np.interp(error, errors, kls))
        slopes = [
            (kls[-1] - k) / (last - e)
            for e, k in zip(errors[:-1], kls[:-1], strict=True)
            if last - e > 1e-12 * last
        ]
        return float(kls[-1] + max(slopes[:1] + slopes[-1:], default=0.0) * (error - last))


@dataclass
class LossModel:
    """KL of a plan as a sum over kinds of edits, each a function of its error that trials fixed.

    KL is quadratic in a small disturbance of the logits, and so linear in the energy of its error;
    independent errors add. What trials show of larger ones bends the line.
    """

    errors: ErrorCurves
    curves: dict[str, _Curve] = field(default_factory=dict)
    heads: dict[int, float] = field(default_factory=dict)  # KL of the output head's rounding, by bits

    @classmethod
    def fit(cls, errors: ErrorCurves, trials: Sequence[Trial]) -> LossModel:
        """From trials of one kind of edit each; those of the head are beside the same with its own."""
        model = cls(errors)
        measured: dict[str, list[tuple[float, float]]] = {}
        for trial in trials:
            edit = trial.plan.quantize
            if edit is not None and edit.head_bits is not None:
                continue
            own = errors.of(trial.plan)
            if len(own) == 1:
                ((kind, error),) = own.items()
                measured.setdefault(kind, []).append((error, trial.kl))
        model.curves = {kind: _Curve.of(points) for kind, points in measured.items()}
        for trial in trials:
            edit = trial.plan.quantize
            if edit is not None and edit.head_bits is not None:
                without = model.kl(Plan(quantize=_without_head(edit)))
                model.heads[edit.head_bits] = max(0.0, trial.kl - without)
        # Fewer bits lose no less, whatever the noise says.
        if 4 in model.heads and 8 in model.heads:
            model.heads[4] = max(model.heads[4], model.heads[8])
        return model

    def kl(self, plan: Plan, *, kv_int8: bool = False) -> float:
        """Mean KL in nats that the plan is expected to have."""
        total = sum(self.curves[kind](error) for kind, error in self.errors.of(plan).items())
        if plan.quantize and plan.quantize.head_bits is not None:
            total += self.heads[plan.quantize.head_bits]
        return total + (KV_INT8_KL if kv_int8 else 0.0)

    def to_dict(self) -> dict[str, Any]:
        """The curves, as JSON holds them."""
        curves = {kind: [list(point) for point in curve.points] for kind, curve in self.curves.items()}
        return {"kl_by_error": curves, "kl_of_head": {str(bits): kl for bits, kl in self.heads.items()}}


def _without_head(edit: Quantize) -> Quantize:
    return Quantize(
        bits=edit.bits,
        group=edit.group,
        rounding=edit.rounding,
        scaling=edit.scaling,
        layer_bits=edit.layer_bits,
    )
