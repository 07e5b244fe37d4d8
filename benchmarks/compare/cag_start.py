#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""From a fresh process to the first token of an answer about documents that were read before.

Knowledge of some thousand tokens is read once by each engine and saved as it saves such things: modicum's
knowledge file, llama.cpp's sequence state (`llama_state_seq_save_file`), transformers' DynamicCache as
safetensors. Then, engine by engine and again and again, a new process opens that file and reads a question
of 32 tokens up to the logits of the next one (`restored`), or reads knowledge and question whole (`cold`).
Loading the model is timed apart, imports are not timed, and the page cache is warm: a first pass does not
count. modicum's opening holds its checks (every checksum of the file, and that it belongs to the model, whose
weights an earlier process has hashed); the others check next to nothing. A measurement while other programs
took much of the machine is repeated.

The checkpoint has a real model's shape and random bf16 weights; all engines get the same token ids, and their
logits over the restored knowledge must agree.

    pip install -r benchmarks/compare/requirements.txt    # see there for llama.cpp
    python benchmarks/compare/cag_start.py --repeat 5 --cold-repeat 3 --json cag_start.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import modicum as mo
import numpy as np
from peers import quiet
from peers.engine import CONTESTANTS, Contestant, Setup, UnavailableError
from peers.report import shown
from peers.rows import QUESTION
from peers.shapes import SHAPES, readable, written_once
from peers.worker import Worker, machine_cpu_seconds

RESERVE = 128  # tokens of the context for the question and its answer
SIZES = (2048, 8192, 32768 - RESERVE)
DOCUMENT = 1024  # words of a document
MOST_DISTANT = 0.1  # see engine.py


@dataclass(frozen=True)
class Knowledge:
    """What every engine reads, and where each keeps what it has read."""

    folder: Path
    tokens: list[int]
    question: list[int]

    def file(self, contestant: Contestant) -> Path:
        return self.folder / f"{contestant.engine}.cache"


@dataclass
class Sample:
    """Seconds of one fresh process. `open` is 0 where the knowledge was computed."""

    load: float
    open: float
    question: float
    disturbance: float
    """Processors that others took meanwhile, on average."""

    @property
    def start(self) -> float:
        """Without loading the model."""
        return self.open + self.question

    @property
    def total(self) -> float:
        return self.load + self.start


class Contest:
    """All engines on one knowledge."""

    def __init__(
        self, contestants: list[Contestant], knowledge: Knowledge, options: argparse.Namespace
    ) -> None:
        self.contestants = contestants
        self.knowledge = knowledge
        self.options = options
        self.foreign = 0.0
        """CPU seconds that others took during the last sample."""

    def start(self, contestant: Contestant) -> Worker:
        context = len(self.knowledge.tokens) + RESERVE
        shape, cache, threads = self.options.shape, self.options.cache, self.options.threads
        return Worker(contestant, shape, cache, threads, context)

    def save(self, contestant: Contestant) -> None:
        """Reads the knowledge once; modicum's was read when it was made."""
        file = self.knowledge.file(contestant)
        if file.exists():
            return
        print(f"{contestant.name} reads {len(self.knowledge.tokens)} tokens", flush=True)
        worker = self.start(contestant)
        unfinished = file.with_suffix(".unfinished")
        worker.call("save_trunk", self.knowledge.tokens, str(unfinished))
        worker.close()
        unfinished.rename(file)

    def logits(self, contestant: Contestant) -> np.ndarray:
        worker = self.start(contestant)
        worker.call("open_trunk", str(self.knowledge.file(contestant)))
        values = np.array(worker.call("question_logits", self.knowledge.question))
        worker.close()
        return values

    def sample(self, contestant: Contestant, kind: str) -> Sample:
        before, begin = machine_cpu_seconds(), time.monotonic()
        worker = self.start(contestant)
        if kind == "cold":
            opened = 0.0
            question = worker.call("prefill", self.knowledge.tokens + self.knowledge.question)
        else:
            opened = worker.call("open_trunk", str(self.knowledge.file(contestant)))
            question = worker.call("question", self.knowledge.question)
        self.foreign = max(machine_cpu_seconds() - before - worker.cpu_seconds(), 0.0)
        worker.close()
        disturbance = self.foreign / (time.monotonic() - begin)
        return Sample(worker.load_seconds, opened, question, disturbance)

    def measure(self) -> dict[str, dict[str, list[Sample]]]:
        """Every pass takes one sample of each engine; the first pass warms up the page cache."""
        samples: dict[str, dict[str, list[Sample]]] = {
            contestant.name: {"restored": [], "cold": []} for contestant in self.contestants
        }
        for repeat in range(max(self.options.repeat, self.options.cold_repeat) + 1):
            for kind, count in (("restored", self.options.repeat), ("cold", self.options.cold_repeat)):
                if repeat > count or (repeat == 0 and kind == "cold"):
                    continue
                for contestant in self.contestants:
                    if repeat == 0:
                        self.sample(contestant, kind)
                        continue
                    sample = quiet.undisturbed(
                        lambda _, contestant=contestant, kind=kind: self.sample(contestant, kind),
                        self,
                        self.options.patience,
                        self.options.tries,
                    )
                    samples[contestant.name][kind].append(sample)
        return samples


def words(setup: Setup, count: int, seed: int) -> str:
    """`count` tokens of the checkpoint's tokenizer, in lines of ten."""
    ids = setup.tokens(count, seed)
    return "\n".join(" ".join(f"t{i}" for i in ids[at : at + 10]) for at in range(0, count, 10))


def write_documents(folder: Path, setup: Setup, counts: list[int]) -> None:
    folder.mkdir(parents=True)
    for i, count in enumerate(counts):
        (folder / f"{i:03}.txt").write_text(words(setup, count, 1000 + i))


def document_lengths(total: int, overhead: int, per_document: int) -> list[int]:
    """Words of each document, so that knowledge has `total` tokens."""
    counts = []
    left = total - overhead
    while left > 0:
        counts.append(min(DOCUMENT, left - per_document))
        left -= counts[-1] + per_document
        if 0 < left <= per_document:  # no room for a word: take it from the last
            counts[-1] -= per_document
            left += per_document
    return counts


def make_knowledge(setup: Setup, model: mo.Model, tokens: int) -> Knowledge:
    """Documents, ids and modicum's own file, made once; the file anew where this version cannot read it."""
    ours = next(c for c in CONTESTANTS if c.name == "modicum bf16")

    def token_count(counts: list[int]) -> int:
        with tempfile.TemporaryDirectory() as folder:
            write_documents(Path(folder) / "documents", setup, counts)
            return len(mo.cag.build(model, Path(folder) / "documents", Path(folder) / "a.kv"))

    def write(folder: Path) -> None:
        one, two = token_count([8]), token_count([8, 8])
        per_document = two - one - 8
        counts = document_lengths(tokens, one - 8 - per_document, per_document)
        write_documents(folder / "documents", setup, counts)

    folder = written_once(setup.cache / f"knowledge-{tokens}", write)
    knowledge = Knowledge(folder, [], [])
    try:
        cache = mo.cag.open(knowledge.file(ours), model)
    except mo.Error:
        print(f"modicum reads {tokens} tokens", flush=True)
        cache = mo.cag.build(model, folder / "documents", knowledge.file(ours))
    ids = cache.branch().tokens
    if len(ids) != tokens:
        raise SystemExit(f"{folder}: {len(ids)} tokens instead of {tokens}; remove it and start again")
    around = len(cache.question_ids("t5")) - 1
    return Knowledge(folder, ids, cache.question_ids(words(setup, QUESTION - around, 999)))


def check(contest: Contest) -> dict[str, float]:
    """Distance of each engine's logits over restored knowledge from the last's, in root mean square."""
    logits = {c.name: contest.logits(c) for c in contest.contestants}
    reference = list(logits.values())[-1]
    scale = np.sqrt(np.mean(np.square(reference)))
    distance = {n: float(np.sqrt(np.mean(np.square(v - reference))) / scale) for n, v in logits.items()}
    for name, value in distance.items():
        if not value < MOST_DISTANT:
            raise SystemExit(f"{name}: its logits are {value:.3f} from the reference's")
    return distance


def summary(contest: Contest, samples: dict[str, dict[str, list[Sample]]]) -> dict[str, dict[str, float]]:
    rows = {}
    for contestant in contest.contestants:
        kinds = samples[contestant.name]
        row: dict[str, float] = {"cache_bytes": contest.knowledge.file(contestant).stat().st_size}
        for kind, taken in kinds.items():
            for part in ("load", "open", "question", "start", "total"):
                row[f"{kind}_{part}"] = statistics.median(getattr(sample, part) for sample in taken)
            row[f"{kind}_disturbance"] = max(sample.disturbance for sample in taken)
        row["ratio"] = row["cold_start"] / row["restored_start"]
        row["ratio_with_load"] = row["cold_total"] / row["restored_total"]
        rows[contestant.name] = row
    return rows


def table(rows: dict[str, dict[str, float]]) -> str:
    ours = rows.get("modicum bf16")
    lines = [
        "| | cold s | restored s | cold ÷ restored | of modicum's restored | open ms | question ms "
        "| load ms | with load: cold s | restored s | cold ÷ restored | cache MB |",
        "|" + "-|" * 12,
    ]
    for name, row in rows.items():
        times = f"{row['restored_start'] / ours['restored_start']:.2f}×" if ours else "–"
        cells = (
            name,
            shown(row["cold_start"]),
            shown(row["restored_start"]),
            f"{row['ratio']:.1f}×",
            times,
            shown(1e3 * row["restored_open"]),
            shown(1e3 * row["restored_question"]),
            shown(1e3 * row["restored_load"]),
            shown(row["cold_total"]),
            shown(row["restored_total"]),
            f"{row['ratio_with_load']:.1f}×",
            f"{row['cache_bytes'] / 1e6:.1f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    worst = max(row[f"{kind}_disturbance"] for row in rows.values() for kind in ("restored", "cold"))
    lines += ["", f"Other programs took up to {worst:.2f} processors during a sample."]
    return "\n".join(lines)


def present(contestants: list[Contestant], options: argparse.Namespace) -> list[Contestant]:
    """Those that run here; what they convert is converted."""
    found = []
    for contestant in contestants:
        try:
            Worker(contestant, options.shape, options.cache, options.threads).close()
        except UnavailableError as error:
            print(f"{contestant.name} is left out: {error}", flush=True)
            continue
        found.append(contestant)
    return found


def measure_size(contestants: list[Contestant], tokens: int, options: argparse.Namespace) -> dict[str, Any]:
    shape = SHAPES[options.shape]
    setup = Setup(shape, options.cache / shape.name / "bf16", options.threads)
    knowledge = make_knowledge(setup, mo.load(setup.checkpoint, threads=options.threads), tokens)
    contest = Contest(contestants, knowledge, options)
    for contestant in contestants:
        contest.save(contestant)
    distance = check(contest)
    print(f"{tokens} tokens, distance of logits: {distance}", flush=True)
    samples = contest.measure()
    rows = summary(contest, samples)
    print(f"\n{tokens} tokens of knowledge, {QUESTION} of question\n\n{table(rows)}\n", flush=True)
    raw = {n: {k: [asdict(s) for s in taken] for k, taken in v.items()} for n, v in samples.items()}
    return {"agreement": distance, "rows": rows, "samples": raw}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    able = [c for c in CONTESTANTS if "open_trunk" in c.measures]
    cache = Path(tempfile.gettempdir()) / "modicum-benchmarks"
    parser.add_argument("--cache", type=Path, default=cache, help="where checkpoints are or will be")
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-0.5b")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="tokens of knowledge")
    engines = [c.engine for c in able]
    parser.add_argument("--engines", nargs="+", choices=engines, default=engines)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--cold-repeat", type=int, default=3, help="reading 32,000 tokens takes minutes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tries", type=int, default=3, help="of a measurement that other programs disturb")
    parser.add_argument(
        "--patience", type=float, default=20, help="seconds to wait for a quiet machine before a measurement"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.contestants = [c for c in able if c.engine in options.engines]
    return options


def main() -> None:
    options = parse()
    options.cache = readable(options.cache, SHAPES[options.shape])
    contestants = present(options.contestants, options)
    print(f"{options.shape}, bf16, {mo.active_isa()}, {options.threads} threads", flush=True)
    sizes = {str(tokens): measure_size(contestants, tokens, options) for tokens in options.sizes}
    if options.json:
        document = {
            "schema": "modicum.benchmark.cag_start/1",
            "shape": options.shape,
            "threads": options.threads,
            "instruction_set": mo.active_isa(),
            "sizes": sizes,
        }
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
