"""What a shape's tokens will cost, from a few shapes that were measured: to rank hundreds of candidates."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from modicum._core import InvalidArgument, ModelConfig
from modicum.model import Model, Progress
from modicum.retrofit.shapes import Format, Shape, config_of, parsed
from modicum.retrofit.speed import NEW_TOKENS, PROMPT_TOKENS, Ratio, SpeedChange, measure_shapes

__all__ = ["CostModel"]

_NOISE = 0.02  # of a measured time, relative, at least
_DOUBT = 0.3  # how far, relative to the whole, a coefficient may be from what is assumed without data
_ROUNDS = 5

Costs = dict[str, float]


@dataclass(frozen=True)
class CostModel:
    """Seconds of a token as a sum over what it passes: linear in layers, FFN columns, heads and vocabulary.

        t = fixed + layers (layer + attention (Q + K) D + ffn F + cache K D) + vocabulary head

    for Q query heads and K heads of keys and values of width D, F columns of the FFN, with coefficients of
    their own for each format of layers and of the head. They are a least-squares fit to shapes that were
    measured beside the source, with weak assumptions where those leave something open: a weight of attention
    costs what one of the FFN does, an element of the cache what a weight does, a layer itself the same in all
    formats, and nothing less than nothing. It is of this machine, this number of
    threads and this length of prompt; finalists are to be measured (:func:`measure_shapes`).

    Attributes
    ----------
    prompt_tokens : that a prompt has, and that are before each token which is written.
    formats : that were measured, and that can be predicted.
    decode, prefill : seconds for each unit of what the names say.
    residuals : by measured shape, (predicted / measured - 1) of writing and of reading.
    noise : half the distance between the quartiles of the rounds' ratios, relative, of writing; the median
        over shapes. A prediction is worth no more than this.
    """

    source: str
    threads: int
    prompt_tokens: int
    formats: tuple[Format, ...]
    decode: Costs
    prefill: Costs
    residuals: dict[str, tuple[float, float]]
    noise: float

    _fitted: ClassVar[dict[str, CostModel]] = {}

    @classmethod
    def fit(
        cls,
        source: Model | str | Path,
        formats: Sequence[Format | int | None] = (None,),
        *,
        rounds: int = _ROUNDS,
        prompt_tokens: int = PROMPT_TOKENS,
        new_tokens: int = NEW_TOKENS,
        threads: int | None = None,
        scratch: Path | None = None,
        progress: Progress | None = None,
    ) -> CostModel:
        """Measures shapes around `source`: five in floats, and about two more for each further format.

        A second call for the same directory, formats and numbers in this process returns what the first
        measured.

        Parameters
        ----------
        formats : that will be asked for; floats are always measured. A number means :class:`Format`'s bits.
        scratch : where checkpoints are made; None means the system's folder for temporary files.
        progress : called with (stage, shapes done, shapes in all); returning False stops.

        Raises
        ------
        Unsupported
            Where no layer fits the group of a format.
        InvalidArgument, IoError, Cancelled
        """
        model = source if isinstance(source, Model) else Model(source, threads=threads)
        config = config_of(model.path)
        wanted = tuple(dict.fromkeys([Format(), *map(_format, formats)]))
        about: dict[str, Any] = {
            "model": str(model.path.resolve()),
            "config": config,
            "formats": [str(f) for f in wanted],
        }
        about |= {"rounds": rounds, "tokens": [prompt_tokens, new_tokens], "threads": model.threads}
        key = json.dumps(about, sort_keys=True)
        if key not in cls._fitted:
            shapes = design(config, wanted)
            measured = measure_shapes(
                model,
                shapes,
                rounds=rounds,
                prompt_tokens=prompt_tokens,
                new_tokens=new_tokens,
                scratch=scratch,
                progress=progress,
            )
            cls._fitted[key] = cls.of(shapes, measured, wanted)
        return cls._fitted[key]

    @classmethod
    def of(
        cls, shapes: Sequence[Shape], measured: Sequence[SpeedChange], formats: Sequence[Format]
    ) -> CostModel:
        """The fit to shapes that were measured; the first is to have the source's own shape, in floats."""
        prompt = measured[0].shape.prompt_tokens
        costs, misses = [], []
        for what in ("decode", "prefill"):
            source = statistics.median(s for m in measured for s in getattr(m.source, what).seconds)
            seconds = [source / getattr(m, what).value for m in measured]
            rows = [_features(parsed(s.config), s.format, prompt) for s in shapes]
            noise = [
                _NOISE + _spread(getattr(m, what)) / len(m.shape.decode.seconds) ** 0.5 for m in measured
            ]
            costs.append(_least_squares(rows, seconds, noise))
            misses.append([_sum(costs[-1], row) / s - 1 for row, s in zip(rows, seconds, strict=True)])
        names = [_name(shape) for shape in shapes]
        return cls(
            source=measured[0].source.name,
            threads=measured[0].source.threads,
            prompt_tokens=prompt,
            formats=tuple(formats),
            decode=costs[0],
            prefill=costs[1],
            residuals={n: (d, p) for n, d, p in zip(names, *misses, strict=True)},
            noise=statistics.median(_spread(m.decode) for m in measured),
        )

    def decode_seconds(
        self, config: dict[str, Any] | ModelConfig, format: Format | int | None = None
    ) -> float:
        """Of writing one token after a prompt of `prompt_tokens`.

        Raises
        ------
        InvalidArgument
            For a format whose layers, or whose head, were not measured.
        """
        return _sum(self.decode, self._row(config, format))

    def prefill_seconds(
        self, config: dict[str, Any] | ModelConfig, format: Format | int | None = None
    ) -> float:
        """Of reading one token of a prompt of `prompt_tokens`; errors as `decode_seconds`."""
        return _sum(self.prefill, self._row(config, format))

    def _row(self, config: dict[str, Any] | ModelConfig, format: Format | int | None) -> Costs:
        row = _features(
            parsed(config) if isinstance(config, dict) else config, _format(format), self.prompt_tokens
        )
        if unknown := [name for name in row if name not in self.decode]:
            known = ", ".join(map(str, self.formats))
            raise InvalidArgument(
                f"[cost] format: expected one that was measured ({known}), got {_format(format)}, with "
                f"unknown {', '.join(unknown)}; name it when the model is fitted"
            )
        return row

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "schema": "modicum.retrofit.cost_model/1",
            "source": self.source,
            "threads": self.threads,
            "prompt_tokens": self.prompt_tokens,
            "formats": [str(f) for f in self.formats],
            "decode_seconds_per_unit": self.decode,
            "prefill_seconds_per_unit": self.prefill,
            "residuals": {name: list(both) for name, both in self.residuals.items()},
            "noise": self.noise,
        }


def design(config: dict[str, Any], formats: Sequence[Format]) -> list[Shape]:
    """Shapes whose times tell the costs apart; the first is the source's own, in floats.

    In floats each of layers, FFN, attention, heads of keys and values, and vocabulary is halved by itself.
    Another format needs fewer: what it leaves open is as in floats.
    """
    c = parsed(config)
    half_inner = {"intermediate_size": _half(c.intermediate_size)}
    half_layers = with_layers(config, _half(c.num_hidden_layers, 1))
    changes: list[dict[str, Any]] = [{}, half_inner, {"vocab_size": _half(c.vocab_size)}]
    queries, keys = c.num_attention_heads, c.num_key_value_heads
    heads = {"head_dim": c.head_dim}  # which would follow from the number of heads where it is not written
    if queries % 2 == 0 and keys % 2 == 0:
        changes.append(heads | {"num_attention_heads": queries // 2, "num_key_value_heads": keys // 2})
        changes.append(heads | {"num_key_value_heads": keys // 2})
    elif keys > 1:
        changes.append(heads | {"num_key_value_heads": 1})
    shapes = [Shape(config | change) for change in changes] + [Shape(half_layers)]
    seen: set[str] = {Format().layers}
    for format in formats:
        if format.bits is None:
            continue
        shapes.append(Shape(config, format))
        if format.layers not in seen:
            shapes += [Shape(config | half_inner, format), Shape(half_layers, format)]
            seen.add(format.layers)
    return [shape for i, shape in enumerate(shapes) if shape not in shapes[:i]]


def _half(size: int, multiple: int = 128) -> int:
    """About half, in whole multiples where that leaves one, so that groups of columns stay whole."""
    return max(size // 2 // multiple * multiple, 1) if size // 2 >= multiple else max(size // 2, 1)


def with_layers(config: dict[str, Any], layers: int) -> dict[str, Any]:
    """The first `layers` of them, with the fields that have an entry for each."""
    changed = config | {"num_hidden_layers": layers}
    if isinstance(changed.get("layer_types"), list):
        changed["layer_types"] = changed["layer_types"][:layers]
    if "max_window_layers" in changed:
        changed["max_window_layers"] = min(changed["max_window_layers"], layers)
    return changed


def _features(c: ModelConfig, format: Format, prompt_tokens: int) -> Costs:
    """How many units of each cost a token has: weights, elements of the cache, layers."""
    layers, wide = c.num_hidden_layers, c.hidden_size
    heads = c.num_attention_heads + c.num_key_value_heads
    head: str = "floats" if format.bits is None or format.head == "keep" else format.head
    if format.group == "channel" and head != "floats":
        head += " by channel"
    return {
        "fixed": 1.0,
        f"layer, {format.layers}": float(layers),
        f"attention weight, {format.layers}": 2.0 * layers * heads * c.head_dim * wide,
        f"ffn weight, {format.layers}": 3.0 * layers * c.intermediate_size * wide,
        "cached element": 2.0 * layers * c.num_key_value_heads * c.head_dim * prompt_tokens,
        f"head weight, {head}": float(c.vocab_size) * wide,
    }


def _spread(ratio: Ratio) -> float:
    return (ratio.high - ratio.low) / 2 / ratio.value


def _least_squares(rows: Sequence[Costs], seconds: Sequence[float], noise: Sequence[float]) -> Costs:
    """Costs of all features that `rows` name, none below 0, under the assumptions above.

    Errors count relative to the `noise` of their time.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    x = np.array([[row.get(name, 0.0) for name in names] for row in rows]) / np.array(seconds)[:, None]
    weights = 1 / np.array(noise)
    equations, goals = [x * weights[:, None]], [weights]
    largest = x.max(axis=0)  # the share of the time that one unit of cost would make, at most
    for i, name in enumerate(names):
        if name.startswith(("ffn", "head")):
            continue  # always told apart by what is measured
        assumption = np.zeros(len(names))
        assumption[i] = largest[i]
        if (like := _like(name)) is not None:
            assumption[names.index(like)] = -largest[i]
        equations.append(assumption[None] / _DOUBT)
        goals.append(np.zeros(1))
    cost = _nonnegative(np.concatenate(equations), np.concatenate(goals))
    return dict(zip(names, cost.tolist(), strict=True))


def _like(name: str) -> str | None:
    """The cost that is assumed to be the same where nothing measured tells; None: assumed to be nothing."""
    if name.startswith("attention weight"):
        return name.replace("attention", "ffn")
    if name == "cached element":
        return f"ffn weight, {Format().layers}"
    layer = f"layer, {Format().layers}"
    return layer if name.startswith("layer") and name != layer else None


def _nonnegative(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The x >= 0 of least |a x - b|, by leaving out what comes out negative: enough for a few columns."""
    scale = np.abs(a).max(axis=0)
    kept = np.arange(a.shape[1])
    x = np.zeros(a.shape[1])
    while len(kept):
        found = np.linalg.lstsq(a[:, kept] / scale[kept], b, rcond=None)[0] / scale[kept]
        if found.min() >= 0:
            x[kept] = found
            break
        kept = np.delete(kept, (found * scale[kept]).argmin())
    return x


def _sum(costs: Costs, row: Costs) -> float:
    return sum(costs[name] * count for name, count in row.items())


def _format(format: Format | int | None) -> Format:
    return format if isinstance(format, Format) else Format(format)


def _name(shape: Shape) -> str:
    c = parsed(shape.config)
    return (
        f"{c.num_hidden_layers} layers, {c.intermediate_size} columns, "
        f"{c.num_attention_heads}/{c.num_key_value_heads} heads, vocabulary {c.vocab_size}, {shape.format}"
    )
