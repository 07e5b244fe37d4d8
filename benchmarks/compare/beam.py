#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Beam search of modicum beside transformers, CTranslate2 and OpenVINO GenAI, interleaved in one run.

A measurement is a whole call, from a prompt of random tokens to exactly N more; no token ends it. The
checkpoints have the shapes of real models and random bf16 weights: what hypotheses share is not what a real
model's share. "transformers shared" is what an expert writes: the prompt is read once and its cache repeated
for every beam, then `generate` goes on from there. "transformers tree" is the same transformers model
searched by modicum's engine (`mo.search.from_transformers`).

Each contestant has its own process with the same number of threads. Those of a row are loaded together, and
their answers checked: in f32 equal tokens, or, as margins of random weights are tiny, equal scores; in fewer
bits scores close to the best, all by transformers in f32. Then, cell by cell, each searches once, and that is
repeated; the first pass warms up and does not count, but for who takes longer than --once. Prompts differ
from pass to pass, as OpenVINO GenAI keeps them. Who needs more than --limit seconds, or more memory than is
free, is ended, and left out where as much or more is asked.

Memory is the most that a process held during the first search of a cell, pages of files aside, above what it
held after loading and a short search that reads every weight. Who holds much more between cells than then
(OpenVINO GenAI keeps its blocks) starts afresh for the next.

    pip install -r benchmarks/compare/requirements.txt
    python benchmarks/compare/beam.py --quick
    python benchmarks/compare/beam.py --rows int8 --shapes smollm2-135m --json int8.json
    python benchmarks/compare/beam.py --read int8.json f32.json --plot memory.svg    # tables of several runs
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from peers import quiet
from peers.beam_tables import plot, report
from peers.beams import ROWS, Cell, Measured, Result, Row, as_json, from_json
from peers.engine import CONTESTANTS, Setup, UnavailableError
from peers.report import shown
from peers.shapes import SHAPES, checkpoint
from peers.worker import TimeLimitError, Worker

JUDGE = "transformers f32"
EXACT = 1e-4  # of a mean log-probability: what the order of additions in f32 can change
CLOSE = 0.05  # and what rounding to bf16 or int8 can; a random continuation is 2 away
ENGINES = ("modicum", "transformers", "CTranslate2", "OpenVINO GenAI")
KEPT = 32 << 20  # bytes that a process may hold more than before; beyond them it starts afresh


class Field:
    """The contestants of a row, on one shape."""

    def __init__(self, row: Row, setup: Setup, options: argparse.Namespace) -> None:
        self.row, self.setup, self.options = row, setup, options
        self.workers: dict[str, Worker] = {}
        self.loaded: dict[str, int] = {}
        """Bytes that each holds when it is loaded."""
        self.failed: dict[str, list[tuple[Cell, Measured]]] = {name: [] for name in row.contestants}

    def start(self) -> list[str]:
        """Who is there."""
        for name in self.row.contestants:
            if not name.startswith(tuple(self.options.engines)):
                continue
            try:
                self.worker(name)
            except UnavailableError as error:
                print(f"{name} is left out: {error}", flush=True)
        return list(self.workers)

    def worker(self, name: str) -> Worker:
        """The process of `name`, loaded and holding no more than that takes."""
        worker = self.workers.get(name)
        if worker and worker.call("held") <= self.loaded[name] + KEPT:
            return worker
        if worker:
            self.end(name)
        contestant = next(c for c in CONTESTANTS if c.name == name)
        worker = Worker(contestant, self.setup.shape.name, self.options.cache, self.options.threads)
        worker.call("beam", self.setup.tokens(16, 1), 2, 2)
        self.loaded[name] = worker.call("held")
        worker.limit = self.options.limit
        self.workers[name] = worker
        return worker

    def search(self, name: str, cell: Cell, seed: int) -> dict[str, Any]:
        """Raises TimeLimitError or UnavailableError, and then the process is gone."""
        worker = self.workers[name]
        worker.limit_memory()
        prompt = self.setup.tokens(cell.prompt, zlib.crc32(f"{cell} {seed}".encode()))
        begin = time.monotonic()
        try:
            found: dict[str, Any] = worker.call("beam", prompt, cell.beams, cell.new)
        except (TimeLimitError, UnavailableError):
            self.end(name)
            raise
        if len(found["ids"]) != cell.new:
            raise SystemExit(f"{name}: wrote {len(found['ids'])} tokens where {cell} asks for {cell.new}")
        others = (worker.foreign - quiet.TICK) / (time.monotonic() - begin)
        return found | {"others": max(0.0, others)}

    def hopeless(self, name: str, cell: Cell) -> Measured | None:
        """What happened to `name` where no more was asked than in `cell`, if it failed there."""
        return next((why for failed, why in self.failed[name] if failed.contains(cell)), None)

    def end(self, name: str) -> None:
        self.workers.pop(name).close()

    def close(self) -> None:
        for name in list(self.workers):
            self.end(name)


def check(field: Field, names: list[str]) -> None:
    """Who computes something else is no contestant."""
    shape = field.setup.shape.name
    cell = Cell(shape, prompt=48, new=12, beams=4)
    ids = {name: field.search(name, cell, 0)["ids"] for name in names}
    prompt = field.setup.tokens(cell.prompt, zlib.crc32(f"{cell} 0".encode()))
    own = JUDGE not in field.workers
    try:
        judge = next(c for c in CONTESTANTS if c.name == JUDGE)
        worker = (
            Worker(judge, shape, field.options.cache, field.options.threads) if own else field.workers[JUDGE]
        )
    except UnavailableError as error:
        raise SystemExit(f"{JUDGE} is needed to check answers: {error}") from error
    best = ids.get(JUDGE) or worker.call("beam", prompt, cell.beams, cell.new)["ids"]
    reference = worker.call("score", prompt, best)
    for name, found in ids.items():
        judge_answer(name, found == best, worker.call("score", prompt, found) - reference)
    if own:
        worker.close()


def judge_answer(name: str, equal: bool, difference: float) -> None:
    if equal:
        print(f"{name}: the tokens of {JUDGE}", flush=True)
        return
    print(f"{name}: other tokens than {JUDGE}, score {difference:+.1e}", flush=True)
    most = EXACT if "f32" in name or "float32" in name else CLOSE
    if not abs(difference) < most:
        raise SystemExit(f"{name}: its answer's score differs by {difference:+.2e}, more than {most:g}")


def measure_once(field: Field, name: str, cell: Cell, repeat: int) -> dict[str, Any]:
    if repeat == 0:
        worker = field.worker(name)
        quiet.wait(field.options.patience)
        return field.search(name, cell, 0)
    worker, tries = field.workers[name], field.options.tries
    return quiet.undisturbed(
        lambda number: field.search(name, cell, 100 * repeat + number), worker, field.options.patience, tries
    )


def attempt(field: Field, name: str, cell: Cell, repeat: int) -> dict[str, Any] | Measured:
    """What a search gives, or why it gives nothing."""
    if failed := field.hopeless(name, cell):
        return failed
    try:
        return measure_once(field, name, cell, repeat)
    except TimeLimitError as error:
        failed = Measured(reason=str(error), at_least=field.options.limit)
    except UnavailableError:
        failed = Measured(reason="failed, or out of memory")
    field.failed[name].append((cell, failed))
    return failed


def measure_cell(field: Field, names: list[str], cell: Cell) -> Result:
    options = field.options
    result = Result(field.row.name, cell, {name: Measured() for name in names})
    for repeat in range(options.repeat + 1):
        for name, measured in result.contestants.items():
            if measured.reason or (repeat > 0 and measured.seconds[0] > options.once):
                continue
            found = attempt(field, name, cell, repeat)
            if isinstance(found, Measured):
                result.contestants[name] = found
                continue
            measured.add(found["seconds"], found["others"])
            if repeat == 0:
                measured.memory = max(0, found["peak"] - field.loaded[name])
                measured.tokens = found["tokens"]
    return result


def measure_row(row: Row, setup: Setup, options: argparse.Namespace) -> list[Result]:
    field, results = Field(row, setup, options), []
    try:
        names = field.start()
        check(field, names)
        for prompt in options.prompts:
            for new in options.new:
                for beams in options.beams:
                    cell = Cell(setup.shape.name, prompt, new, beams)
                    results.append(measure_cell(field, names, cell))
                    print(f"{cell}: {summary(results[-1])}", flush=True)
    finally:
        field.close()
    return results


def summary(result: Result) -> str:
    return ", ".join(
        f"{name} {m.reason or f'{shown(m.median or 0)} s {m.memory / 1e6:.0f} MB'}"
        for name, m in result.contestants.items()
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cache = Path(tempfile.gettempdir()) / "modicum-benchmarks"
    parser.add_argument("--cache", type=Path, default=cache, help="where checkpoints are or will be")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["smollm2-135m", "qwen2.5-0.5b"])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--prompts", type=int, nargs="+", default=[128, 512, 2048, 8192])
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4, 8, 16, 32, 64])
    parser.add_argument("--new", type=int, nargs="+", default=[64], help="tokens to write")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=120, help="seconds that one search may take")
    parser.add_argument("--once", type=float, default=15, help="seconds beyond which one search is enough")
    parser.add_argument("--tries", type=int, default=3, help="of a measurement that other programs disturb")
    parser.add_argument(
        "--patience", type=float, default=20, help="seconds to wait for a quiet machine before a measurement"
    )
    parser.add_argument("--quick", action="store_true", help="a small grid, each cell once")
    parser.add_argument("--read", type=Path, nargs="+", help="show what earlier runs wrote, measure nothing")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="PNG or SVG of memory against beams")
    options = parser.parse_args(arguments)
    if options.quick:
        options.shapes, options.prompts = options.shapes[:1], [128, 512]
        options.beams, options.new, options.repeat = [1, 4], [32], 1
    options.beams = sorted(options.beams)  # who fails with some is spared more
    return options


def machine(options: argparse.Namespace) -> dict[str, Any]:
    import modicum as mo

    return {
        "processor": platform.processor() or platform.machine(),
        "instruction_set": mo.active_isa(),
        "threads": options.threads,
    }


def measure(options: argparse.Namespace) -> list[Result]:
    found, results = machine(options), []
    print(f"{found['processor']}, {found['instruction_set']}, {options.threads} threads")
    for name in options.shapes:
        setup = Setup(SHAPES[name], checkpoint(options.cache, SHAPES[name]), options.threads)
        for row in options.rows:
            results += measure_row(ROWS[row], setup, options)
            if options.json:  # after every row: the next may take long
                document = {"schema": "modicum.benchmark.beam/1", "machine": found, "repeat": options.repeat}
                options.json.write_text(json.dumps(document | {"results": as_json(results)}, indent=2) + "\n")
    return results


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.read:
        results = [
            r for file in options.read for r in from_json(json.loads(file.read_text("utf-8"))["results"])
        ]
    else:
        results = measure(options)
    print("\n" + report(results))
    if options.plot:
        plot(results, options.plot)


if __name__ == "__main__":
    main()
