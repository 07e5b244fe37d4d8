# SPDX-License-Identifier: Apache-2.0
"""What beam.py measured, as tables in Markdown and as a plot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from peers.beams import MEMORY_TARGETS, ROWS, Cell, Measured, Pair, Result, kv_bytes
from peers.report import COLORS, shown

Group = tuple[str, str, int, int]  # row, shape, prompt, new


def grouped(results: list[Result]) -> dict[Group, list[Result]]:
    """By everything but beams, which rise."""
    groups: dict[Group, list[Result]] = {}
    for result in sorted(results, key=lambda r: r.cell.beams):
        cell = result.cell
        groups.setdefault((result.row, cell.shape, cell.prompt, cell.new), []).append(result)
    return groups


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["-"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _time(measured: Measured, cell: Cell) -> str:
    if measured.median is None:
        return measured.reason
    once = " once" if len(measured.seconds) == 1 else ""
    return f"{shown(measured.median)} ({shown(cell.new / measured.median)}/s{once})"


def _ratio(pair: Pair, result: Result) -> str:
    ratio = pair.least_ratio(result)
    more = "" if pair.ratio(result) else "> "
    return f"{more}{ratio:.2f}×" if ratio else "–"


def _asked(pair: Pair, result: Result) -> str:
    target = pair.target(result.cell)
    return f" (≥ {target:g}×)" if target else ""


def _names(results: list[Result], row: str) -> list[str]:
    """Contestants that took part, in the row's order."""
    present = {name for result in results for name in result.contestants}
    return [name for name in ROWS[row].contestants if name in present]


def seconds_table(group: Group, results: list[Result]) -> str:
    """Medians of whole calls by beams, and how many times faster modicum is."""
    row, shape, prompt, new = group
    names = _names(results, row)
    pairs = [pair for pair in ROWS[row].pairs if pair.peer in names and {*pair.ours} & {*names}]
    lines = []
    for result in results:
        cells = [_time(result.of(name), result.cell) for name in names]
        ratios = [_ratio(pair, result) + _asked(pair, result) for pair in pairs]
        lines.append([str(result.cell.beams), *cells, *ratios])
    title = f"**{shape}, {row}: {prompt} tokens read, {new} written; seconds (tokens/s)**\n\n"
    return title + markdown(["beams", *names, *(pair.title for pair in pairs)], lines)


def memory_table(group: Group, results: list[Result]) -> str:
    """Peaks by beams, beside keys and values of unique tokens and of a batch."""
    row, shape, prompt, new = group
    names = _names(results, row)
    lines = []
    for result in results:
        cell, token = result.cell, kv_bytes(shape, row)
        peaks = [result.of(name).memory for name in names]
        cells = [f"{peak / 1e6:.0f}" if peak else "–" for peak in peaks]
        models = [f"{tokens * token / 1e6:.0f}" for tokens in (result.unique_tokens, cell.batch_tokens)]
        lines.append([str(cell.beams), *cells, *models, _memory_share(result)])
    title = f"**{shape}, {row}: {prompt} + {new} tokens; MB above the loaded model**\n\n"
    return title + markdown(
        ["beams", *names, "unique tokens × bytes", "a batch's", "modicum / unique tokens'"], lines
    )


def memory_share(result: Result) -> float | None:
    """What modicum's search took (the thriftiest, where there are several) in unique tokens' bytes."""
    peaks = [m.memory for n, m in result.contestants.items() if n.startswith("modicum") and m.memory]
    unique = result.unique_tokens * kv_bytes(result.cell.shape, result.row)
    return min(peaks) / unique if peaks else None


def _memory_share(result: Result) -> str:
    cell = result.cell
    share, target = memory_share(result), MEMORY_TARGETS.get((cell.shape, cell.prompt, cell.beams))
    asked = f" (≤ {target:g}×)" if target else ""
    return f"{share:.2f}×{asked}" if share else "–"


def paper_table(results: list[Result]) -> str:
    """The table of trie-based beam search's paper: speed and bytes a token, stock transformers → trie."""
    lines = []
    for (row, shape, prompt, new), group in grouped(results).items():
        if ROWS[row].stock:
            label = f"{shape} {row} ({prompt}, {new})"
            lines += [[label, str(r.cell.beams), *_paper_cells(r)] for r in group]
    header = ["model (in, out)", "B", "tok/s transformers → trie", "× speed", "MB/token", "× memory"]
    return markdown(header, lines) if lines else ""


def _paper_cells(result: Result) -> list[str]:
    stock = ROWS[result.row].stock
    assert stock
    arms = [result.of(name) for name in stock]
    rates = [result.cell.new / arm.median if arm.median else None for arm in arms]
    tokens = result.cell.prompt + result.cell.new
    bytes_ = [arm.memory / tokens if arm.memory else None for arm in arms]
    return [
        " → ".join(shown(rate) if rate else "–" for rate in rates),
        f"{rates[1] / rates[0]:.2f}" if rates[0] and rates[1] else "–",
        " → ".join(shown(one / 1e6) if one else "–" for one in bytes_),
        f"{bytes_[0] / bytes_[1]:.1f}" if bytes_[0] and bytes_[1] else "–",
    ]


def target_table(results: list[Result]) -> str:
    """Everything that was asked for in a cell that was measured."""
    lines = []
    for (row, *_), group in grouped(results).items():
        for result in group:
            lines += [line for pair in ROWS[row].pairs if (line := _pair_target(result, pair))]
            cell = result.cell
            most = MEMORY_TARGETS.get((cell.shape, cell.prompt, cell.beams))
            if most and (share := memory_share(result)):
                what = f"{row}: memory / unique tokens'"
                lines.append(_target(cell, what, f"{share:.2f}×", f"≤ {most:g}×", share <= most))
    return markdown(["cell", "what", "measured", "asked", "met"], lines) if lines else ""


def _pair_target(result: Result, pair: Pair) -> list[str] | None:
    ratio, least, mine = pair.least_ratio(result), pair.target(result.cell), result.best(pair.ours)
    if not ratio or not least or not mine:
        return None
    what = f"{mine[0]} against {pair.peer}"
    return _target(result.cell, what, _ratio(pair, result), f"≥ {least:g}×", ratio >= least)


def _target(cell: Cell, what: str, measured: str, asked: str, met: bool) -> list[str]:
    place = f"{cell.shape} {cell.prompt} + {cell.new}, {cell.beams} beams"
    return [place, what, measured, asked, "yes" if met else "**no**"]


def disturbance(results: list[Result]) -> str:
    """Engines whose threads wait by spinning lose most by it, so a ratio says little where this is much."""
    found = [
        (measured.others, f"{name} in {result.cell}")
        for result in results
        for name, measured in result.contestants.items()
    ]
    others, where = max(found, default=(0.0, ""))
    return f"Other programs kept up to {others:.2f} processors busy ({where})." if where else ""


def report(results: list[Result]) -> str:
    groups = grouped(results)
    parts = [seconds_table(group, found) for group, found in groups.items()]
    parts += [memory_table(group, found) for group, found in groups.items()]
    parts += [table(results) for table in (paper_table, target_table, disturbance)]
    return "\n\n".join(part for part in parts if part)


def plot(results: list[Result], path: Path) -> None:
    """Memory against beams of each contestant, beside unique tokens' and a batch's keys and values."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = grouped(results)
    columns = min(3, len(groups))
    rows = -(-len(groups) // columns)
    figure, grid = pyplot.subplots(
        rows, columns, figsize=(4.6 * columns, 3.6 * rows), squeeze=False, layout="constrained"
    )
    for axis in grid.flat[len(groups) :]:
        axis.axis("off")
    for axis, (group, found) in zip(grid.flat, groups.items(), strict=False):
        _panel(axis, group, found)
    figure.savefig(path)
    pyplot.close(figure)


def _panel(axis: Any, group: Group, results: list[Result]) -> None:
    row, shape, prompt, new = group
    for i, name in enumerate(_names(results, row)):
        points = [(r.cell.beams, m.memory / 1e6) for r in results if (m := r.of(name)).memory]
        if points:
            color = next(COLORS[engine] for engine in COLORS if name.startswith(engine))
            axis.plot(*zip(*points, strict=True), "osv^D"[i % 5] + "-", color=color, label=name, markersize=4)

    def model(tokens: Callable[[Result], float], label: str, style: str) -> None:
        megabytes = [tokens(r) * kv_bytes(shape, row) / 1e6 for r in results]
        axis.plot([r.cell.beams for r in results], megabytes, style, color="#555555", label=label)

    model(lambda r: r.unique_tokens, "unique tokens × bytes", "--")
    model(lambda r: r.cell.batch_tokens, "beams × tokens × bytes", ":")
    axis.set(xscale="log", yscale="log", xlabel="beams", ylabel="MB above the model")
    ticks = [r.cell.beams for r in results]
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.set_xticks([], minor=True)
    axis.set_title(f"{shape}, {row}, {prompt} + {new} tokens", fontsize=9)
    axis.legend(fontsize=6)
