# SPDX-License-Identifier: Apache-2.0
"""The medians as a table and as a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLORS = {
    "modicum": "#c0392b",
    "llama.cpp": "#2c7fb8",
    "transformers": "#e6a817",
    "CTranslate2": "#756bb1",
    "OpenVINO GenAI": "#31a354",
}


def shown(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3f}"


def ratio(row: dict[str, Any]) -> float | None:
    """How many times better modicum's best median is than the best peer's; None where one is absent."""
    ours = [v["median"] for name, v in row["contestants"].items() if name.startswith("modicum")]
    theirs = [v["median"] for name, v in row["contestants"].items() if not name.startswith("modicum")]
    if not ours or not theirs:
        return None
    return min(theirs) / min(ours) if row["seconds"] else max(ours) / max(theirs)


def table(shape: str, result: dict[str, Any]) -> str:
    """In Markdown."""
    lines = [
        f"**{shape}**",
        "",
        "| what | modicum | peers | ratio to the best | target | share of the limit |",
        "|-|-|-|-|-|-|",
    ]
    for row in result["rows"].values():
        names = list(row["contestants"])
        ours = [
            f"{n.removeprefix('modicum ')} {shown(row['contestants'][n]['median'])}"
            for n in names
            if n.startswith("modicum")
        ]
        theirs = ", ".join(
            f"{n} {shown(row['contestants'][n]['median'])}" for n in names if not n.startswith("modicum")
        )
        times, target, share = ratio(row), row.get("target"), row.get("share_of_limit")
        cells = (
            row["title"],
            ", ".join(ours) or "–",
            theirs or "–",
            f"{times:.2f}×" if times else "–",
            f"{target:.2f}×" if target else "–",
            f"{share:.2f} of {row['limit']}" if share else "–",
        )
        lines.append("| " + " | ".join(cells) + " |")
    if branches := result.get("branches"):
        lines += [
            "",
            f"One step of {branches['count']} branches on a trunk of {branches['trunk']}: "
            f"{shown(branches['many'])} s, of one branch {shown(branches['one'])} s: "
            f"{branches['ratio']:.2f}× (target ≤ {branches['target']:.2f}×).",
        ]
    return "\n".join(lines)


def plot(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Bars of each row relative to modicum's median, with the spread between the quartiles."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = max(len(result["rows"]) for result in results.values())
    figure, grid = pyplot.subplots(
        len(results), rows, figsize=(2.6 * rows, 3.2 * len(results)), squeeze=False, layout="constrained"
    )
    for axes, (shape, result) in zip(grid, results.items(), strict=True):
        for axis in axes[len(result["rows"]) :]:
            axis.axis("off")
        for axis, row in zip(axes, result["rows"].values(), strict=False):
            _bars(axis, row)
        axes[0].set_ylabel(shape)
    figure.savefig(path)
    pyplot.close(figure)


def _bars(axis: Any, row: dict[str, Any]) -> None:
    names = list(row["contestants"])
    medians = [row["contestants"][n]["median"] for n in names]
    spread = [sorted(row["contestants"][n]["values"]) for n in names]
    low = [m - s[len(s) // 4] for m, s in zip(medians, spread, strict=True)]
    high = [s[(3 * len(s)) // 4] - m for m, s in zip(medians, spread, strict=True)]
    engines = [next(e for e in COLORS if n.startswith(e)) for n in names]
    bars = axis.bar(range(len(names)), medians, yerr=[low, high], color=[COLORS[e] for e in engines])
    axis.bar_label(bars, [shown(m) for m in medians], fontsize=7)
    axis.set_xticks(range(len(names)), [n.replace(" ", "\n") for n in names], fontsize=6)
    axis.set_title(row["title"].replace(", ", "\n"), fontsize=7)
