# SPDX-License-Identifier: Apache-2.0
"""What beam.py measures: the rows, the cells of each, what is asked of modicum, what memory should be."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from peers.shapes import SHAPES


@dataclass(frozen=True)
class Cell:
    """One beam search: `new` tokens after `prompt` of them."""

    shape: str
    prompt: int
    new: int
    beams: int

    def contains(self, other: Cell) -> bool:
        """Whether `other` asks for no less of anything."""
        mine = (self.prompt, self.new, self.beams)
        return self.shape == other.shape and all(
            a <= b for a, b in zip(mine, (other.prompt, other.new, other.beams), strict=True)
        )

    @property
    def unique_tokens(self) -> float:
        """Tokens that hypotheses do not share, by the share of them found in searches of real models."""
        return self.prompt + self.new + 0.3 * self.beams * self.new

    @property
    def batch_tokens(self) -> int:
        """Tokens where every beam has a cache of its own."""
        return self.beams * (self.prompt + self.new)


@dataclass
class Measured:
    """Of one contestant in one cell; without seconds where `reason` says why."""

    seconds: list[float] = field(default_factory=list)
    memory: int = 0
    """Bytes, at their most, above what the loaded model holds."""
    tokens: int = 0
    """That were held at most when `memory` was measured, shared ones once; 0: the engine does not tell."""
    others: float = 0.0
    """Processors that everybody else kept busy during the most disturbed pass that counts."""
    reason: str = ""
    at_least: float = 0.0
    """Seconds that passed before it was ended."""

    def add(self, seconds: float, others: float) -> None:
        """The first pass warms up: what follows takes its place."""
        self.others = max(self.others, others) if len(self.seconds) > 1 else others
        self.seconds.append(seconds)

    @property
    def median(self) -> float | None:
        """Without the first pass, unless it was the only one."""
        return statistics.median(self.seconds[1:] or self.seconds) if self.seconds else None


@dataclass
class Result:
    row: str
    cell: Cell
    contestants: dict[str, Measured]

    def of(self, name: str) -> Measured:
        return self.contestants.get(name, Measured(reason="–"))

    @property
    def unique_tokens(self) -> float:
        """As modicum counted them, or else as the cell estimates."""
        return max((m.tokens for m in self.contestants.values()), default=0) or self.cell.unique_tokens

    def best(self, names: tuple[str, ...]) -> tuple[str, float] | None:
        """Who of `names` is the fastest, and its seconds."""
        medians = {n: m.median for n, m in self.contestants.items() if n in names}
        found = [(seconds, name) for name, seconds in medians.items() if seconds is not None]
        return min(found)[::-1] if found else None


def as_json(results: list[Result]) -> list[dict[str, Any]]:
    return [asdict(result) for result in results]


def from_json(values: list[dict[str, Any]]) -> list[Result]:
    return [
        Result(v["row"], Cell(**v["cell"]), {n: Measured(**m) for n, m in v["contestants"].items()})
        for v in values
    ]


@dataclass(frozen=True)
class Pair:
    """How many times faster than `peer` the fastest of `ours` is, and what is asked of that."""

    title: str
    ours: tuple[str, ...]
    peer: str
    target: Callable[[Cell], float | None] = lambda _: None

    def ratio(self, result: Result) -> float | None:
        mine, theirs = result.best(self.ours), result.best((self.peer,))
        return theirs[1] / mine[1] if mine and theirs else None

    def least_ratio(self, result: Result) -> float | None:
        """`ratio`, or what it would be more than where the peer was ended."""
        mine, theirs = result.best(self.ours), result.of(self.peer)
        return self.ratio(result) or (theirs.at_least / mine[1] if mine and theirs.at_least else None)


@dataclass(frozen=True)
class Row:
    """Contestants that are loaded together and measured in turn."""

    name: str
    contestants: tuple[str, ...]
    pairs: tuple[Pair, ...]
    stock: tuple[str, str] | None = None
    """transformers as it is and modicum, in one dtype: the arms of the paper's table."""


_Points = dict[tuple[str, int, int], float]


def _at(points: _Points) -> Callable[[Cell], float | None]:
    return lambda cell: points.get((cell.shape, cell.prompt, cell.beams))


def _shared(cell: Cell) -> float | None:
    """Against one prefill for all beams: never slower where it matters, twice as fast where copies do."""
    if cell.beams < 4 or cell.prompt < 512 or cell.shape not in _MEASURED:
        return None
    return 2.0 if cell.beams >= 16 and cell.prompt >= 2048 else 1.0


def _stock(cell: Cell) -> float | None:
    return 3.0 if cell.prompt >= 2048 and cell.beams >= 4 and cell.shape in _MEASURED else None


_SMOLLM, _QWEN = _MEASURED = ("smollm2-135m", "qwen2.5-0.5b")
_INT8 = ("modicum int8", "modicum int8 channel")
_OPENVINO, _CTRANSLATE2 = "OpenVINO GenAI int8", "CTranslate2 int8"
_INT8_TARGETS = {
    (shape, prompt, beams): times
    for shape in _MEASURED
    for prompt, at_16 in ((512, 1.7), (2048, 2.0))
    for beams, times in ((4, 1.3), (16, at_16))
}
_F32_TARGETS = {(_SMOLLM, 2048, beams): times for beams, times in ((4, 5.0), (16, 15.0), (32, 25.0))}
MEMORY_TARGETS = {(_SMOLLM, 2048, 16): 1.15}
"""Of the memory that a search of modicum takes, in keys and values of unique tokens."""


def _transformers(dtype: str, targets: _Points) -> tuple[Pair, Pair]:
    ours = (f"modicum {dtype}",)
    stock = Pair("× transformers", ours, f"transformers {dtype}", _at(targets))
    return stock, Pair("× shared prefill", ours, f"transformers {dtype} shared", _shared)


ROWS = {
    row.name: row
    for row in (
        Row(
            "int8",
            (*_INT8, "modicum bf16", _OPENVINO, _CTRANSLATE2),
            (
                Pair("int8 × OpenVINO", _INT8, _OPENVINO, _at(_INT8_TARGETS)),
                Pair("int8 × CTranslate2", _INT8, _CTRANSLATE2),
                Pair("bf16 × OpenVINO int8", ("modicum bf16",), _OPENVINO, _at({(_QWEN, 2048, 16): 1.0})),
            ),
        ),
        Row(
            "f32",
            (
                "modicum f32",
                "transformers f32",
                "transformers f32 shared",
                "transformers f32 tree",
                "CTranslate2 float32",
            ),
            (
                *_transformers("f32", _F32_TARGETS),
                Pair("from_transformers × stock", ("transformers f32 tree",), "transformers f32", _stock),
                Pair("× CTranslate2", ("modicum f32",), "CTranslate2 float32"),
            ),
            ("transformers f32", "modicum f32"),
        ),
        Row(
            "bf16",
            ("modicum bf16", "transformers bf16", "transformers bf16 shared"),
            _transformers("bf16", {}),
            ("transformers bf16", "modicum bf16"),
        ),
    )
}


def kv_bytes(shape: str, row: str) -> int:
    """Of a token's keys and values in modicum: bf16 but for an f32 model."""
    return SHAPES[shape].kv_bytes(1) * (2 if row == "f32" else 1)
