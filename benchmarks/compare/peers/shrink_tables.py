# SPDX-License-Identifier: Apache-2.0
"""What shrinking cost, as tables: means and spreads over seeds, and where modicum is above a baseline."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

COLUMNS = ("method", "perplexity", "change", "KL", "top-1", "refit removes", "seconds", "CPU s", "MB", "")


@dataclass(frozen=True)
class Run:
    """One seed's outcome. `memory` is bytes, KL nats; `cpu` seconds of all threads together."""

    seed: int
    perplexity: float
    kl: float
    top1: float
    seconds: float
    memory: int
    cpu: float = 0.0

    @property
    def loss(self) -> float:
        return math.log(self.perplexity)


@dataclass
class Row:
    """A method on an amount; `reason` says why there are no runs."""

    method: str
    ours: bool
    without: str = ""
    runs: list[Run] = field(default_factory=list)
    reason: str = ""

    def mean(self, of: Callable[[Run], float]) -> float:
        return statistics.fmean(of(run) for run in self.runs)

    def spread(self, of: Callable[[Run], float]) -> float:
        """Standard deviation over seeds; 0 with one."""
        return statistics.stdev(of(run) for run in self.runs) if len(self.runs) > 1 else 0.0


@dataclass
class Table:
    """All methods on one amount; `perplexity` is the old model's."""

    model: str
    kind: str
    title: str
    perplexity: float
    rows: list[Row] = field(default_factory=list)

    def row(self, method: str) -> Row | None:
        return next((row for row in self.rows if row.method == method and row.runs), None)

    @property
    def ablations(self) -> set[str]:
        """Methods that are here only so that what another one adds can be seen."""
        return {row.without for row in self.rows}


def above(table: Table, row: Row) -> list[str]:
    """The baselines that are closer to the old model than `row`, which is ours, and by which measure."""
    if not row.ours or not row.runs:
        return []
    found = []
    for other in table.rows:
        if other.ours or not other.runs:
            continue
        worse = [
            name for name, of in (("KL", _kl), ("perplexity", _perplexity)) if row.mean(of) > other.mean(of)
        ]
        if worse:
            found.append(other.method + ("" if len(worse) == 2 else f" in {worse[0]}"))
    return found


def _kl(run: Run) -> float:
    return run.kl


def _perplexity(run: Run) -> float:
    return run.perplexity


def removed(table: Table, row: Row) -> float | None:
    """The share of the loss increase without the refit that the refit takes away; None where that is none.

    Below 0 the refit made it worse; above 1 the model predicts the text better than the old one.
    """
    bare = table.row(row.without) if row.without else None
    if bare is None or not row.runs:
        return None
    start = math.log(table.perplexity)
    increase = bare.mean(lambda run: run.loss) - start
    if increase <= 0:
        return None
    return 1 - (row.mean(lambda run: run.loss) - start) / increase


def _plus_minus(row: Row, of: Callable[[Run], float], digits: int = 3) -> str:
    text = _number(row.mean(of), digits)
    return text + (f" ± {_number(row.spread(of), 2)}" if len(row.runs) > 1 else "")


def _number(value: float, digits: int) -> str:
    """`digits` significant ones, and never an exponent for what is as large as 0.0001."""
    if not math.isfinite(value) or value == 0:
        return str(value) if value else "0"
    if abs(value) < 1e-4 or abs(value) >= 1e6:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def cells(table: Table, row: Row) -> tuple[str, ...]:
    if not row.runs:
        return (row.method, *[""] * (len(COLUMNS) - 2), row.reason)
    share = removed(table, row)
    beaten = above(table, row)
    return (
        row.method,
        _plus_minus(row, _perplexity, 4),
        f"{100 * (row.mean(_perplexity) / table.perplexity - 1):+.2f} %",
        _plus_minus(row, _kl),
        f"{100 * row.mean(lambda run: run.top1):.1f} %",
        "" if share is None else f"{share:.0%}",
        _number(row.mean(lambda run: run.seconds), 2),
        _number(row.mean(lambda run: run.cpu), 2),
        f"{row.mean(lambda run: run.memory) / 1e6:.0f}",
        f"✗ above {', '.join(beaten)}" if beaten else "",
    )


def heading(table: Table) -> str:
    return f"{table.model}, {table.title}; the whole model's perplexity is {table.perplexity:.4g}"


def text(table: Table) -> str:
    """For a terminal."""
    return "\n".join([heading(table), *aligned([COLUMNS, *(cells(table, row) for row in table.rows)])])


def aligned(lines: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns of one width each; the last one, as a reason may be long, widens nothing."""
    sizes = [max(len(line[at]) for line in lines) for at in range(len(lines[0]) - 1)]
    return [
        "  ".join(
            [line[0].ljust(sizes[0])]
            + [cell.rjust(size) for cell, size in zip(line[1:-1], sizes[1:], strict=True)]
            + [line[-1]]
        ).rstrip()
        for line in lines
    ]


def markdown(table: Table) -> str:
    lines = [
        f"**{heading(table)}**",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|-|" + "-:|" * (len(COLUMNS) - 2) + "-|",
    ]
    lines += ["| " + " | ".join(cells(table, row)) + " |" for row in table.rows]
    return "\n".join(lines)


def summary(tables: Sequence[Table]) -> str:
    """In how many tables the best of ours is closer (by KL) than the best baseline, and every row that is
    not, with the ablations left out."""
    compared = wins = 0
    lost = []
    for table in tables:
        ours = [r for r in table.rows if r.ours and r.runs and r.method not in table.ablations]
        theirs = [r for r in table.rows if not r.ours and r.runs]
        if not ours or not theirs:
            continue
        compared += 1
        wins += min(r.mean(_kl) for r in ours) < min(r.mean(_kl) for r in theirs)
        lost += [
            f"  {table.model}, {table.title}: {row.method} above {', '.join(beaten)}"
            for row in ours
            if (beaten := above(table, row))
        ]
    first = f"The best of modicum has a lower KL than every baseline in {wins} of {compared} tables."
    return "\n".join([first, *(["Rows that are above a baseline:", *lost] if lost else [])])


def as_json(tables: Sequence[Table]) -> list[dict[str, Any]]:
    return [asdict(table) for table in tables]


def from_json(found: Sequence[dict[str, Any]]) -> list[Table]:
    return [
        Table(
            **{
                **table,
                "rows": [
                    Row(**{**row, "runs": [Run(**run) for run in row["runs"]]}) for row in table["rows"]
                ],
            }
        )
        for table in found
    ]
