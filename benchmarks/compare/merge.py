#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Merging of checkpoints by modicum beside mergekit, and beside PEFT, interleaved in one run.

Three random bf16 checkpoints of a real model's shape, a base and two that differ from it by noise, are merged
from directories to a directory. Both tools read the same configuration; mergekit has its default options and
computes in float32 as modicum does, so that their weights can be compared. With --bf16 also in bfloat16, as
its examples do. A LoRA adapter is folded by modicum and by PEFT's merge_and_unload, and the linear layers of
one block are merged in memory by modicum and by the functions of peft.utils.merge_utils.

Every merge has a process of its own, contestants take turns, and what one left to be written is on the disk
before the next begins; inputs are in memory. Seconds are of the merge without imports, "process" is all of
it. modicum's include that the result has reached the disk (fsync), the others leave that to the system.
Memory is private memory at its peak, above what the process held before; pages of mapped files are the
system's. Ratios are of medians.

Weights of the last round are compared: the share that is identical, the largest difference of one, and the
largest relative to it. DARE draws at random, each tool other elements, so nothing is compared. Where
magnitudes are equal at the cut of TIES, breadcrumbs and magnitude_prune, which of them stay is not defined:
torch leaves the order of equals open. In bf16 many are equal.

    pip install -r benchmarks/compare/requirements-merge.txt && pip install --no-deps mergekit==0.1.5
    python benchmarks/compare/merge.py --work /tmp/merge --out merge.json
    python benchmarks/compare/merge.py --rows task_arithmetic ties --bf16 --rounds 5
    python benchmarks/compare/merge.py --read merge.json --markdown
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from peers import merge_tables as tables
from peers import quiet
from peers.merge_difference import difference
from peers.merge_models import Family, family
from peers.merge_rows import ROWS, Contestant, Row
from peers.merge_worker import MergeWorker
from peers.shapes import SHAPES
from peers.shrink_worker import ShrinkError
from peers.worker import machine_cpu_seconds

SHAPE_NAMES = {"qwen2-0.5b": "qwen2.5-0.5b", "small": "tiny"}
PACKAGES = ("mergekit", "peft", "torch", "transformers", "safetensors")


def merge_once(
    contestant: Contestant, models: Family, out: Path, options: argparse.Namespace
) -> dict[str, Any]:
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    quiet.wait(options.patience)
    return MergeWorker(contestant.who, options.threads).merge(contestant.ask(models), out)


def measure_row(row: Row, models: Family, options: argparse.Namespace, work: Path) -> tables.Result:
    chosen = [one for one in row.contestants if options.bf16 or not one.in_bf16]
    result = tables.Result(row.name, row.title, {one.name: tables.Cost() for one in chosen}, row.target)
    for _ in range(options.rounds):
        for one in chosen:
            cost = result.costs[one.name]
            if cost.reason:
                continue
            try:
                cost.add(merge_once(one, models, work / one.name, options))
            except (ShrinkError, OSError) as error:
                result.costs[one.name] = tables.Cost(reason=str(error))
    if row.random:
        result.note = "drawn at random"
    elif result.costs["modicum"].seconds:
        for peer in result.peers:
            compare(result, peer, work)
    for one in chosen:
        shutil.rmtree(work / one.name, ignore_errors=True)
    return result


def compare(result: tables.Result, peer: str, work: Path) -> None:
    if result.costs[peer].reason:
        return
    try:
        result.differences[peer] = difference(work / "modicum", work / peer)
    except ValueError as error:
        result.note = f"not compared: {error}"


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The document that --out is."""
    import modicum as mo

    models = family(options.work, SHAPES[SHAPE_NAMES[options.shape]])
    models.read()
    document: dict[str, Any] = {
        "schema": "modicum.benchmark.merge/1",
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "instruction_set": mo.active_isa(),
            "threads": options.threads,
            "processors": os.cpu_count(),
        },
        "versions": {"modicum": mo.__version__, **versions()},
        "shape": options.shape,
        "bytes": models.bytes,
        "rounds": options.rounds,
    }
    print(heading(document), flush=True)
    results: list[tables.Result] = []
    begin, everybody = time.monotonic(), machine_cpu_seconds()
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        for name in options.rows:
            results.append(measure_row(ROWS[name], models, options, Path(work)))
            print(tables.text(results[-1:]) + "\n", flush=True)
            others = machine_cpu_seconds() - everybody - cpu_seconds()
            document["machine"]["taken_by_others"] = max(0.0, others / (time.monotonic() - begin))
            document["rows"] = tables.as_json(results)
            if options.out:  # after every row: the next may take long
                options.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return document


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # its rows say so
            continue
    return found


def cpu_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def heading(document: dict[str, Any]) -> str:
    machine, versions = document["machine"], document["versions"]
    peers = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"{document['shape']}, {document['bytes'] / 1e6:.0f} MB a model; {machine['processor']}, "
        f"{machine['instruction_set']}, {machine['threads']} threads, {document['rounds']} rounds; {peers}\n"
    )


def show(document: dict[str, Any], options: argparse.Namespace) -> str:
    results = [one for one in tables.from_json(document["rows"]) if one.row in options.rows]
    machine = document["machine"]
    return (
        f"{heading(document)}\n{tables.markdown(results) if options.markdown else tables.text(results)}\n\n"
        f"Others took {machine['taken_by_others']:.2f} of {machine['processors']} processors."
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    work = Path(tempfile.gettempdir()) / "modicum-benchmarks"
    parser.add_argument(
        "--work", type=Path, default=work, help="where checkpoints are or will be, and results"
    )
    parser.add_argument("--shape", choices=SHAPE_NAMES, default="qwen2-0.5b")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--bf16", action="store_true", help="also peers that compute in bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--patience", type=float, default=20, help="seconds to wait for a quiet machine before a merge"
    )
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--out", type=Path, help="JSON")
    parser.add_argument("--read", type=Path, nargs="+", help="show what earlier runs wrote, measure nothing")
    options = parser.parse_args(arguments)
    options.work = options.work.resolve()  # workers run in another folder
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    documents = (
        [json.loads(file.read_text("utf-8")) for file in options.read] if options.read else [measure(options)]
    )
    print("\n\n".join(show(document, options) for document in documents))


if __name__ == "__main__":
    main()
