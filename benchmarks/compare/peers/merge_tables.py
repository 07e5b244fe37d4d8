# SPDX-License-Identifier: Apache-2.0
"""What merging cost, as tables: medians, and modicum's beside each peer's of the same run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from peers.merge_difference import Difference
from peers.report import shown
from peers.shrink_tables import aligned

COLUMNS = (
    "method",
    "peer",
    "seconds",
    "peer's",
    "ratio",
    "process",
    "peer's",
    "MB",
    "peer's",
    "identical",
    "largest difference",
    "relative",
    "",
)


@dataclass
class Cost:
    """A list has one entry a round; bytes and seconds. `reason` says why there are none."""

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    process: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    private: list[int] = field(default_factory=list)
    reason: str = ""

    def add(self, round: dict[str, Any]) -> None:
        for name, value in round.items():
            getattr(self, name).append(value)

    def medians(self) -> dict[str, float]:
        lists = {name: values for name, values in asdict(self).items() if name != "reason" and values}
        return {name: statistics.median(values) for name, values in lists.items()}


@dataclass
class Result:
    """Of a row; modicum's cost is the first. `differences` of modicum's weights from each peer's."""

    row: str
    title: str
    costs: dict[str, Cost]
    target: float | None = None
    differences: dict[str, Difference] = field(default_factory=dict)
    note: str = ""

    def ratio(self, peer: str) -> float | None:
        """How many times as long as modicum the peer took: medians of seconds."""
        ours, theirs = self.costs["modicum"].seconds, self.costs[peer].seconds
        return statistics.median(theirs) / statistics.median(ours) if ours and theirs else None

    @property
    def peers(self) -> list[str]:
        return [name for name in self.costs if name != "modicum"]


def cells(result: Result, peer: str) -> tuple[str, ...]:
    ours, theirs = result.costs["modicum"], result.costs[peer]
    ratio, found = result.ratio(peer), result.differences.get(peer)
    asked = f" (≥ {result.target:g}×)" if result.target and peer == result.peers[0] else ""
    pairs = [_median(cost, name) for name in ("seconds", "process", "memory") for cost in (ours, theirs)]
    return (
        result.title,
        peer,
        *pairs[:2],
        f"{ratio:.2f}×{asked}" if ratio else "–",
        *pairs[2:],
        *((_share(found), f"{found.absolute:.2g}", f"{found.relative:.2g}") if found else ("–",) * 3),
        ours.reason or theirs.reason or result.note,
    )


def _median(cost: Cost, name: str) -> str:
    middle = cost.medians().get(name)
    if middle is None:
        return "–"
    return f"{middle / 1e6:.0f}" if name == "memory" else shown(middle)


def _share(found: Difference) -> str:
    """100 % only where it is all of them."""
    if found.identical == found.elements:
        return "all"
    return f"{min(100 * found.share, 99.9999):.4f} %"


def text(results: Sequence[Result]) -> str:
    """For a terminal."""
    return "\n".join(aligned([COLUMNS, *_lines(results)]))


def markdown(results: Sequence[Result]) -> str:
    header = ["| " + " | ".join(COLUMNS) + " |", "|-|-|" + "-:|" * (len(COLUMNS) - 3) + "-|"]
    return "\n".join([*header, *("| " + " | ".join(line) + " |" for line in _lines(results))])


def _lines(results: Sequence[Result]) -> list[tuple[str, ...]]:
    return [cells(result, peer) for result in results for peer in result.peers]


def as_json(results: Sequence[Result]) -> list[dict[str, Any]]:
    """With medians and ratios, for whoever reads it without us."""
    return [
        asdict(result)
        | {
            "medians": {name: cost.medians() for name, cost in result.costs.items()},
            "ratios": {peer: result.ratio(peer) for peer in result.peers},
        }
        for result in results
    ]


def from_json(found: Sequence[dict[str, Any]]) -> list[Result]:
    return [
        Result(
            row["row"],
            row["title"],
            {name: Cost(**cost) for name, cost in row["costs"].items()},
            row["target"],
            {name: Difference(**one) for name, one in row["differences"].items()},
            row["note"],
        )
        for row in found
    ]
