#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The time of a step against cached length and against branches, beside what the machine allows.

A step reads the weights once and the trunk's keys and values once for all branches, and multiplies each
branch with all of them: it can take no less than those bytes over the read bandwidth, nor than those
multiply-adds over the peak. Both limits are measured in the same run. The checkpoint is random, of a real
model's shape.

    python benchmarks/compare/scaling.py --shape smollm2-135m --json scaling.json --plot scaling.svg
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import modicum as mo
import numpy as np
from peers.shapes import SHAPES, Shape, checkpoint

CONTEXT = 65536
LENGTHS = (0, 1024, 4096, 16384, 32768)
BRANCHES = (1, 2, 4, 8, 16, 32, 64)


def tokens(shape: Shape, count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, shape.vocab_size, count).tolist()


def grow_trunks(model: mo.Model, shape: Shape, lengths: Sequence[int]) -> dict[int, Any]:
    """A branch of each length; each is a prefix of the next, so only the longest costs memory."""
    leaf = model.tree()
    trunks = {}
    for length in sorted(lengths):
        begin = time.perf_counter()
        if length > len(leaf):
            leaf = leaf.extend(tokens(shape, length - len(leaf), length))
        trunks[length] = leaf
        print(f"trunk of {length} tokens: {time.perf_counter() - begin:.1f} s", flush=True)
    return trunks


def step(leaves: Sequence[Any], ids: Sequence[int]) -> float:
    """Seconds of one more token on each leaf, with its logits."""
    begin = time.perf_counter()
    mo.logits(mo.extend([(leaf, [token]) for leaf, token in zip(leaves, ids, strict=True)]))
    return time.perf_counter() - begin


def medians(points: Sequence[int], measure: Callable[[int, int], float], repeat: int) -> dict[int, float]:
    """Of each point; every pass measures all of them, so that a slow moment is shared. The first warms up."""
    times: dict[int, list[float]] = {point: [] for point in points}
    for i in range(repeat + 1):
        for point in points:
            seconds = measure(point, i)
            if i > 0:
                times[point].append(seconds)
    return {point: statistics.median(values) for point, values in times.items()}


def curve(
    model: mo.Model, shape: Shape, measured: dict[int, float], kind: str, trunk: int, limits: dict[str, float]
) -> list[dict[str, float]]:
    """Measured seconds beside those that bytes and multiply-adds allow."""
    rows = []
    for point, seconds in measured.items():
        length, branches = (point, 1) if kind == "length" else (trunk, point)
        read = model.weight_bytes_per_token + length * model.kv_bytes_per_token
        operations = branches * shape.flop(length, 1)
        rows.append(
            {
                kind: point,
                "seconds": seconds,
                "bytes": read,
                "operations": operations,
                "read_seconds": read / limits["read"],
                "multiply_seconds": operations / limits["peak"],
            }
        )
    return rows


def table(rows: list[dict[str, float]], kind: str) -> str:
    lines = [f"| {kind} | measured ms | bytes allow ms | multiply-adds allow ms | share of the limit |"]
    lines.append("|-|-|-|-|-|")
    for row in rows:
        limit = max(row["read_seconds"], row["multiply_seconds"])
        cells = [f"{1e3 * row[name]:.2f}" for name in ("seconds", "read_seconds", "multiply_seconds")]
        lines.append(f"| {row[kind]} | {' | '.join(cells)} | {limit / row['seconds']:.2f} |")
    return "\n".join(lines)


def plot(curves: dict[str, list[dict[str, float]]], title: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(curves), figsize=(9, 3.6), layout="constrained")
    labels = {"length": "cached tokens", "branches": "branches"}
    for axis, (kind, rows) in zip(axes, curves.items(), strict=True):
        x = [row[kind] for row in rows]
        axis.plot(x, [1e3 * row["seconds"] for row in rows], "o-", color="#c0392b", label="measured")
        axis.plot(x, [1e3 * row["read_seconds"] for row in rows], "--", color="#2c7fb8", label="bytes allow")
        multiply = [1e3 * row["multiply_seconds"] for row in rows]
        axis.plot(x, multiply, ":", color="#31a354", label="multiply-adds allow")
        axis.set(xlabel=labels[kind], ylabel="ms a step", ylim=(0, None))
        axis.legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(path)
    pyplot.close(figure)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    shape = SHAPES[options.shape]
    model = mo.load(checkpoint(options.cache, shape, context=CONTEXT), threads=options.threads)
    trunks = grow_trunks(model, shape, sorted({*options.lengths, options.trunk}))

    def one(length: int, seed: int) -> float:
        return step([trunks[length]], tokens(shape, 1, seed))

    def many(count: int, seed: int) -> float:
        ids = tokens(shape, count, seed)
        leaves = mo.extend([(trunks[options.trunk], [token]) for token in ids])
        return step(leaves, ids)

    by_length = medians(options.lengths, one, options.repeat)
    by_branches = medians(options.branches, many, options.repeat)
    peaks = mo.machine_limits(threads=options.threads)
    read = mo.read_bandwidth(threads=options.threads, size=model.weight_bytes_per_token)
    limits = {"read": read, "peak": peaks.bf16}
    return {
        "schema": "modicum.benchmark.scaling/1",
        "shape": shape.name,
        "threads": options.threads,
        "instruction_set": mo.active_isa(),
        "trunk": options.trunk,
        "limits": limits,
        "length": curve(model, shape, by_length, "length", options.trunk, limits),
        "branches": curve(model, shape, by_branches, "branches", options.trunk, limits),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cache = Path(tempfile.gettempdir()) / "modicum-benchmarks"
    parser.add_argument("--cache", type=Path, default=cache, help="where checkpoints are or will be")
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--branches", type=int, nargs="+", default=BRANCHES)
    parser.add_argument("--trunk", type=int, default=2048, help="cached tokens below the branches")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="PNG or SVG")
    options = parser.parse_args()

    result = measure(options)
    print(f"{result['shape']}, bf16, {result['instruction_set']}, {options.threads} threads")
    print(f"reads {result['limits']['read'] / 1e9:.1f} GB/s, peak {result['limits']['peak'] / 1e9:.0f} Gop/s")
    print("\n" + table(result["length"], "length"))
    print(f"\non a trunk of {options.trunk}:\n\n" + table(result["branches"], "branches"))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    if options.plot:
        curves = {kind: result[kind] for kind in ("length", "branches")}
        plot(curves, f"{result['shape']}, one step", options.plot)


if __name__ == "__main__":
    main()
