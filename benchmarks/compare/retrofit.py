#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Models shrunk in closed form by modicum and by published methods, from the same text, judged alike.

Nobody trains. Each contestant gets the same calibration ids and writes a Hugging Face directory, which
transformers loads in float32 and one judge compares with the old model on other text; the protocol is
printed. Of the calibration sequences modicum keeps one in eight back to choose its dampings; the others learn
from all. Calls alternate, seed by seed, and only one contestant works at a time; each has a process of its
own with the same number of threads. Seconds are of a whole call, from directory to directory, by the clock
and by the processors; memory is private memory at its peak above what the process held before. "Refit
removes" is the share of the rise in loss without the refit that the refit takes away. A row of modicum's that
is above a baseline is marked.

FFN: neurons by magnitude, Wanda-sp and FLAP. Heads: mean-pool, Procrustes with neighbours or searched groups.
Bits: rounding to nearest, llm-compressor's GPTQ and AWQ, AutoRound. Depth: the layer whose input and output
point most alike goes, bare or with ReplaceMe's matrix; mergekit's passthrough slice is the bare drop by a
tool. FLAP gives biases that Qwen2 and Mistral cannot hold: there its row fails.

The tools have an environment of their own (requirements-shrink.txt), named by --tools; what is not installed
or fails is told in its row.

    pip install torch==2.13.0 "transformers>=5" compressed-tensors
    python benchmarks/compare/retrofit.py --seeds 1 --tokens 16384 --only ffn,kv
    python benchmarks/compare/retrofit.py --models MODEL --calibration a.txt --evaluation b.txt --out m.json
    python benchmarks/compare/retrofit.py --read m.json other.json --markdown
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from peers import shrink_tables as tables
from peers.shrink_methods import METHODS, TABLES, Amount, Method, amounts
from peers.shrink_texts import DATA, ROOT, calibration_ids, encode, texts_of
from peers.shrink_worker import ShrinkError, ShrinkWorker

DEFAULT = [
    DATA / "models" / "stories260K",
    DATA / "models" / "babyllama-361",
    ROOT / "examples" / "demo" / "model",
]
HELD_OUT = 8  # of so many calibration sequences modicum keeps one back
TOOLS = ("llm-compressor", "auto-round", "mergekit")


class Contestants:
    """Processes, each started when it is first needed."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.workers: dict[str, ShrinkWorker | str] = {}

    def worker(self, who: str) -> ShrinkWorker:
        """Raises ShrinkError, each time, where it does not start."""
        if who not in self.workers:
            tool = who in TOOLS
            try:
                if tool and not self.options.tools:
                    raise ShrinkError("no --tools given")
                python = str(self.options.tools) if tool else sys.executable
                self.workers[who] = ShrinkWorker(who, self.options.threads, python)
            except (ShrinkError, OSError) as error:
                self.workers[who] = str(error)
        found = self.workers[who]
        if isinstance(found, str):
            raise ShrinkError(found)
        if found.process.poll() is not None:  # an earlier call ended it
            del self.workers[who]
            return self.worker(who)
        return found

    def close(self) -> None:
        for worker in self.workers.values():
            if isinstance(worker, ShrinkWorker):
                worker.close()


class Subject:
    """A model with its texts and the judge of what is made from it."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        import modicum as mo
        from modicum.calibration import bos_tokens
        from peers.shrink_quality import Judge, windows

        self.folder, self.options = folder.resolve(), options  # workers run in another folder
        self.name = "demo" if folder.name == "model" else folder.name
        self.config = json.loads((folder / "config.json").read_text("utf-8"))
        model = mo.load(folder, threads=1)
        begin, tokenizer = bos_tokens(model), model.tokenizer
        self.length = min(options.length, model.config.max_position_embeddings)
        texts = texts_of(folder, options.calibration, options.evaluation)
        self.stream = encode(tokenizer, texts.calibration, begin)
        judged = encode(tokenizer, texts.evaluation, begin)
        rows = windows(judged, self.length, begin)
        wanted = min(len(rows), max(1, options.evaluation_tokens // self.length))
        rows = rows[[at * len(rows) // wanted for at in range(wanted)]]  # from all over the text
        self.begin, self.loaded = begin, load(folder)
        self.judge = Judge(self.loaded, rows)
        self.perplexity = self.judge.quality(self.loaded).perplexity
        self.source = (
            f"{texts.name}; calibration: {options.tokens} tokens in sequences of {self.length}, "
            f"evaluation: {rows.numel()} tokens in windows of {self.length}"
        )

    def ids(self, seed: int) -> Any:
        return calibration_ids(self.stream, self.begin, self.options.tokens, self.length, seed)

    def layer(self) -> int:
        """The layer that goes, by the first seed's text."""
        import torch
        from peers.shrink_depth import least_angle

        return least_angle(self.loaded, torch.from_numpy(self.ids(0)[:32]).long())


def load(folder: Path) -> Any:
    """Any contestant's directory in float32; integers become the floats that they stand for."""
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # That the stored configuration is read with one option changed is what is wanted here.
    warnings.filterwarnings("ignore", message="You passed `quantization_config`")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    stored = config.get("quantization_config", {}).get("quant_method") == "compressed-tensors"
    more = {"quantization_config": CompressedTensorsConfig(run_compressed=False)} if stored else {}
    model, found = AutoModelForCausalLM.from_pretrained(
        folder, dtype="float32", output_loading_info=True, **more
    )
    if lost := sorted(found["unexpected_keys"]):
        raise ValueError(f"{lost[0]} and {len(lost) - 1} more: what this kind of model cannot hold")
    return model.eval()


def shrink_once(
    subject: Subject, contestants: Contestants, method: Method, amount: Amount, seed: int, work: Path
) -> tables.Run:
    import numpy as np

    ids, out = subject.ids(seed), work / "out"
    shutil.rmtree(out, ignore_errors=True)
    np.save(work / "ids.npy", ids)
    held_out = max(1, len(ids) // HELD_OUT)
    worker = contestants.worker(method.who)
    cost = worker.shrink(subject.folder, out, work / "ids.npy", held_out, method.ask(amount.values))
    quality = subject.judge.quality(load(out))
    return tables.Run(
        seed,
        quality.perplexity,
        quality.kl,
        quality.top1,
        cost["seconds"],
        int(cost["memory"]),
        cost["cpu"],
    )


def measure_amount(
    subject: Subject, contestants: Contestants, amount: Amount, options: argparse.Namespace
) -> tables.Table:
    table = tables.Table(subject.name, amount.table, amount.title, subject.perplexity)
    chosen = [m for m in METHODS if m.table == amount.table and m.only(amount.values)]
    table.rows = [tables.Row(m.name, m.ours, m.without) for m in chosen]
    with tempfile.TemporaryDirectory() as work:
        for seed in range(options.seeds):
            for method, row in zip(chosen, table.rows, strict=True):
                if row.reason or (seed > 0 and not method.reads):
                    continue
                try:
                    row.runs.append(shrink_once(subject, contestants, method, amount, seed, Path(work)))
                except (ShrinkError, OSError, ValueError) as error:
                    row.reason, row.runs = str(error), []
    return table


def measure(options: argparse.Namespace) -> list[tables.Table]:
    import torch
    from peers.shrink_quality import PROTOCOL

    torch.set_num_threads(options.threads)
    print(f"{platform.processor() or platform.machine()}, {options.threads} threads. {PROTOCOL}\n")
    found, contestants = [], Contestants(options)
    try:
        for folder in options.models:
            subject = Subject(folder, options)
            print(f"{subject.name}: {subject.source}\n", flush=True)
            for amount in amounts(subject.config, subject.layer(), options.only):
                found.append(measure_amount(subject, contestants, amount, options))
                print(show(found[-1], options) + "\n", flush=True)
                if options.out:  # after every table: the next may take long
                    write(options, found)
    finally:
        contestants.close()
    return found


def write(options: argparse.Namespace, found: Sequence[tables.Table]) -> None:
    from peers.shrink_quality import PROTOCOL

    document = {
        "schema": "modicum.benchmark.retrofit/1",
        "protocol": PROTOCOL,
        "threads": options.threads,
        "seeds": options.seeds,
        "tokens": options.tokens,
        "evaluation_tokens": options.evaluation_tokens,
        "tables": tables.as_json(found),
    }
    options.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def show(table: tables.Table, options: argparse.Namespace) -> str:
    return tables.markdown(table) if options.markdown else tables.text(table)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=Path, nargs="+", default=DEFAULT, help="Hugging Face directories")
    parser.add_argument("--only", default=",".join(TABLES), help=f"of {','.join(TABLES)}")
    parser.add_argument("--seeds", type=int, default=3, help="of calibration texts")
    parser.add_argument("--tokens", type=int, default=65536, help="to calibrate on")
    parser.add_argument("--length", type=int, default=512, help="of a sequence, at most the context")
    parser.add_argument("--evaluation-tokens", type=int, default=16384)
    parser.add_argument("--calibration", type=Path, nargs="+", default=[], help=".jsonl or text files")
    parser.add_argument(
        "--evaluation",
        type=Path,
        nargs="+",
        default=[],
        help="without: a tenth of --calibration is set aside",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tools", type=Path, help="python in which requirements-shrink.txt is installed")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--out", type=Path, help="JSON")
    parser.add_argument("--read", type=Path, nargs="+", help="show what earlier runs wrote, measure nothing")
    options = parser.parse_args(arguments)
    options.only = tuple(options.only.split(","))
    if unknown := set(options.only) - set(TABLES):
        parser.error(f"--only: expected some of {','.join(TABLES)}, got {min(unknown)!r}")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.read:
        found = [
            table
            for file in options.read
            for table in tables.from_json(json.loads(file.read_text("utf-8"))["tables"])
        ]
        found = [table for table in found if table.kind in options.only]
        print("\n\n".join(show(table, options) for table in found) + "\n")
    else:
        found = measure(options)
    print(tables.summary(found))


if __name__ == "__main__":
    main()
