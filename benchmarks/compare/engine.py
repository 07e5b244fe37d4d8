#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""modicum beside llama.cpp, transformers, CTranslate2 and OpenVINO GenAI, interleaved in one run.

The checkpoints have the shapes of real models and random bf16 weights, so this says nothing about quality;
they and what the peers convert them to are written once into --cache. Every engine and format has its own
process with the same number of threads; all are loaded first. Then, row by row, each measures once, and that
is repeated: a machine that slows down slows everybody. The first pass warms up and does not count, and what
was measured while other programs took much of the machine is measured again. Read bandwidth is probed before
each pass, over as many bytes as the weights have. A peer that is not installed is left out.

    pip install -r benchmarks/compare/requirements.txt    # see there for llama.cpp
    python benchmarks/compare/engine.py --shapes smollm2-135m --repeat 5 --json engine.json --plot engine.svg
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import modicum as mo
import numpy as np
from peers import quiet, report
from peers.engine import CONTESTANTS, Contestant, Setup, UnavailableError
from peers.rows import BRANCHES, DECODE, PROMPT, ROWS, TRUNK, Row
from peers.shapes import SHAPES, Shape, bytes_per_token, checkpoint
from peers.worker import Worker

BRANCH_TARGET = 1.8


def start(contestants: list[Contestant], shape: Shape, options: argparse.Namespace) -> dict[str, Worker]:
    workers = {}
    for contestant in contestants:
        begin = time.perf_counter()
        try:
            workers[contestant.name] = Worker(contestant, shape.name, options.cache, options.threads)
        except UnavailableError as error:
            print(f"{contestant.name} is left out: {error}", flush=True)
            continue
        print(f"{contestant.name}: ready after {time.perf_counter() - begin:.1f} s", flush=True)
    return workers


def agreement(workers: dict[str, Worker], setup: Setup) -> dict[str, float]:
    """Distance of each engine's logits from transformers' (or the first's), in root mean square."""
    tokens = setup.tokens(48)
    logits = {}
    for name, worker in workers.items():
        if not name.startswith("OpenVINO"):  # its generator gives no logits
            logits[name] = np.array(worker.call("logits", tokens))
    if not logits:
        return {}
    reference = logits.get("transformers bf16", next(iter(logits.values())))
    scale = np.sqrt(np.mean(np.square(reference)))
    return {
        name: float(np.sqrt(np.mean(np.square(values - reference))) / scale)
        for name, values in logits.items()
    }


def check(errors: dict[str, float]) -> None:
    """Who computes something else is no contestant."""
    for name, error in errors.items():
        # Unrelated logits are 1.4 apart. bf16 and int8 round a weight to half a per cent, which adds up over
        # the layers; four bits to a tenth of the weights' spread.
        most = 0.8 if "4" in name.split(" ", 1)[1] else 0.1
        if not error < most:
            raise SystemExit(f"{name}: its logits are {error:.3f} from the reference's, more than {most}")


def measure_try(row: Row, worker: Worker, setup: Setup, repeat: int, number: int) -> float:
    return row.measure(worker, setup, 100 * repeat + number)


def measure_row(
    row: Row, workers: dict[str, Worker], setup: Setup, weights: int, options: argparse.Namespace
) -> dict[str, Any]:
    takes_part = {name: workers[name] for name in row.contestants if name in workers}
    values: dict[str, list[float]] = {name: [] for name in takes_part}
    bandwidth = []
    for repeat in range(options.repeat + 1):
        if row.bound == "read" and repeat > 0:
            quiet.wait(options.patience)
            bandwidth.append(mo.read_bandwidth(threads=options.threads, size=weights))
        for name, worker in takes_part.items():
            if repeat == 0:
                row.measure(worker, setup, repeat)
                continue
            measure = partial(measure_try, row, worker, setup, repeat)
            values[name].append(quiet.undisturbed(measure, worker, options.patience, options.tries))
    contestants = {n: {"median": statistics.median(v), "values": v} for n, v in values.items()}
    return {
        "title": row.title,
        "seconds": row.seconds,
        "target": row.targets.get(setup.shape.name),
        "read_bandwidth": bandwidth,
        "contestants": contestants,
    }


def add_limit(result: dict[str, Any], row: Row, setup: Setup, weights: int, peaks: dict[str, float]) -> None:
    """What share of the machine's limit modicum reaches."""
    medians = [v["median"] for n, v in result["contestants"].items() if n.startswith("modicum")]
    if not medians:
        return
    ours = min(medians) if row.seconds else max(medians)
    per_second = 1 / ours if row.seconds else ours
    if row.bound == "read":
        read = weights + setup.shape.kv_bytes(PROMPT + DECODE // 2)
        result["share_of_limit"] = per_second * read / statistics.median(result["read_bandwidth"])
        result["limit"] = "read bandwidth"
    else:
        result["share_of_limit"] = per_second * row.flop(setup.shape) / peaks[row.bound]
        result["limit"] = f"{row.bound} peak"


def measure_branches(worker: Worker, setup: Setup, options: argparse.Namespace) -> dict[str, Any]:
    times: dict[int, list[float]] = {1: [], BRANCHES: []}
    for i in range(2 * options.repeat + 1):
        for count, values in times.items():
            tokens = setup.tokens(count, i)
            seconds = quiet.undisturbed(
                lambda _, tokens=tokens: worker.call("branches", tokens),
                worker,
                options.patience,
                options.tries,
            )
            if i > 0:
                values.append(seconds)
    one, many = (statistics.median(times[count]) for count in (1, BRANCHES))
    sizes = {"count": BRANCHES, "trunk": TRUNK}
    return sizes | {"one": one, "many": many, "ratio": many / one, "target": BRANCH_TARGET, "values": times}


def measure_shape(shape: Shape, options: argparse.Namespace, peaks: dict[str, float]) -> dict[str, Any]:
    rows = [ROWS[name] for name in options.rows if name in ROWS]
    wanted = {name for row in rows for name in row.contestants}
    if "branches" in options.rows:
        wanted.add("modicum bf16")
    chosen = [c for c in CONTESTANTS if c.name in wanted and c.engine in options.engines]
    setup = Setup(shape, checkpoint(options.cache, shape), options.threads)
    workers = start(chosen, shape, options)
    result: dict[str, Any] = {"agreement": agreement(workers, setup), "rows": {}}
    check(result["agreement"])
    print(f"distance of logits: {result['agreement']}", flush=True)
    if {"question", "branches"} & set(options.rows):
        for contestant in chosen:
            if contestant.name in workers and "keep_trunk" in contestant.measures:
                workers[contestant.name].call("keep_trunk", setup.tokens(TRUNK, 99))
    for row in rows:
        if not any(name in workers for name in row.contestants):
            continue
        weights = weight_bytes(setup, row)
        values = measure_row(row, workers, setup, weights, options)
        add_limit(values, row, setup, weights, peaks)
        result["rows"][row.name] = values
        medians = {name: report.shown(v["median"]) for name, v in values["contestants"].items()}
        print(f"{row.title}: {medians}", flush=True)
    if "branches" in options.rows and "modicum bf16" in workers:
        result["branches"] = measure_branches(workers["modicum bf16"], setup, options)
    result["idle_cpu_seconds"] = {name: worker.idle_cpu for name, worker in workers.items()}
    result["peak_memory"] = {name: worker.peak_memory for name, worker in workers.items()}
    for worker in workers.values():
        worker.close()
    return result


def weight_bytes(setup: Setup, row: Row) -> int:
    """What modicum reads for a token in the row's format; in bf16 where there is no such checkpoint."""
    name = next(name for name in row.contestants if name.startswith("modicum"))
    folder = setup.cache / f"modicum-{name.split()[1]}" / "model"
    return bytes_per_token(folder if folder.is_dir() else setup.checkpoint)


def machine(options: argparse.Namespace) -> dict[str, Any]:
    quiet.wait(options.patience)
    limits = mo.machine_limits(threads=options.threads)
    return {
        "processor": platform.processor() or platform.machine(),
        "instruction_set": mo.active_isa(),
        "threads": options.threads,
        "peaks": {"f32": limits.f32, "bf16": limits.bf16, "int8": limits.int8},
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    engines = list(dict.fromkeys(c.engine for c in CONTESTANTS))
    rows = [*ROWS, "branches"]
    cache = Path(tempfile.gettempdir()) / "modicum-benchmarks"
    parser.add_argument("--cache", type=Path, default=cache, help="where checkpoints are or will be")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["qwen2.5-0.5b", "smollm2-135m"])
    parser.add_argument("--rows", nargs="+", choices=rows, default=rows)
    parser.add_argument("--engines", nargs="+", choices=engines, default=engines)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tries", type=int, default=5, help="of a measurement that other programs disturb")
    parser.add_argument(
        "--patience", type=float, default=20, help="seconds to wait for a quiet machine before a measurement"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="PNG or SVG")
    return parser.parse_args()


def main() -> None:
    options = parse()
    found = machine(options)
    peaks = {kind: f"{rate / 1e9:.0f} Gop/s" for kind, rate in found["peaks"].items()}
    print(f"{found['processor']}, {found['instruction_set']}, {options.threads} threads; {peaks}")
    results = {}
    for name in options.shapes:
        results[name] = measure_shape(SHAPES[name], options, found["peaks"])
        print("\n" + report.table(name, results[name]) + "\n", flush=True)
    if options.json:
        document = {"schema": "modicum.benchmark.engine/2", "machine": found, "repeat": options.repeat}
        options.json.write_text(json.dumps(document | {"shapes": results}, indent=2) + "\n")
    if options.plot:
        report.plot(results, options.plot)


if __name__ == "__main__":
    main()
