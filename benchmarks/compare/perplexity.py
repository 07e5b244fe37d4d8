#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What quantising costs: bytes, perplexity and agreement, beside transformers on the same integers.

The text is cut into windows that do not overlap; each token but a window's first is predicted from those
before it in the window. KL is the mean divergence of the next token's distribution from the float model's,
top-1 the share of tokens where both find the same one likeliest. "transformers" reads the directory that
modicum wrote, through compressed-tensors, in float32: what differs is that modicum rounds the inputs of
linear layers to int8.

    python benchmarks/compare/perplexity.py --model MODEL --text TEXT --window 512
    python benchmarks/compare/perplexity.py --demo --window 1024 --questions 300   # the bundled model
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import modicum as mo
import numpy as np

DEMO = Path(__file__).parents[2] / "examples" / "demo"
VARIANTS: list[tuple[int | None, str, int | Literal["channel"] | None]] = [
    (None, "keep", None),
    (8, "keep", None),
    (8, "int8", None),
    (8, "int8", "channel"),
    (4, "keep", None),
    (4, "int8", None),
    (4, "int4", None),
]  # bits, head and columns that share a scale, None: as --group says
Logits = Callable[[list[int]], Any]


@dataclass
class Row:
    """One line of the table."""

    name: str
    megabytes: float
    perplexity: float
    kl: float = 0.0
    top1: float = 1.0
    transformers: float | None = None
    exact_match: float | None = None


def log_softmax(logits: Any) -> Any:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def windows(texts: Sequence[list[int]], size: int) -> Iterator[list[int]]:
    for ids in texts:
        for begin in range(0, len(ids), size):
            if len(ids[begin : begin + size]) > 1:
                yield ids[begin : begin + size]


def measure(logits: Logits, reference: Logits, parts: Sequence[list[int]]) -> tuple[float, float, float]:
    """Perplexity of `logits`, and its KL divergence from and top-1 agreement with `reference`."""
    loss = kl = agree = count = 0.0
    for ids in parts:
        ours, exact = log_softmax(logits(ids[:-1])), log_softmax(reference(ids[:-1]))
        loss -= ours[np.arange(len(ids) - 1), ids[1:]].sum()
        kl += (np.exp(exact) * (exact - ours)).sum()
        agree += (ours.argmax(-1) == exact.argmax(-1)).sum()
        count += len(ids) - 1
    return float(np.exp(loss / count)), float(kl / count), float(agree / count)


def transformers_logits(folder: Path) -> Logits:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def logits(ids: list[int]) -> Any:
        with torch.inference_mode():
            return model(torch.tensor([ids])).logits[0].numpy()

    return logits


def demo_texts(model: mo.Model) -> list[list[int]]:
    """Documents of institutions that the demo model never saw."""
    evaluate = demo_evaluation()
    places = evaluate.institutions(12, 600, False)
    return [model.tokenizer.encode(evaluate.system_prompt(place.documents)) for place in places]


def demo_evaluation() -> Any:
    sys.path.insert(0, str(DEMO))
    import evaluate

    return evaluate


def exact_match(model: mo.Model, questions: int) -> float:
    """The share of right answers to questions over documents of institutions that training never showed."""
    evaluate = demo_evaluation()

    class Reader:
        def answers(self, documents: dict[str, str], asked: list[str], longest: int = 40) -> list[str]:
            system = {"role": "system", "content": evaluate.system_prompt(documents)}
            prompts = [model.chat_prompt([system, {"role": "user", "content": q}]) for q in asked]
            return [model.generate(prompt, max_new_tokens=longest).text for prompt in prompts]

    marks: dict[str, list[bool]] = {}
    for facts in (8, 24):
        for kind, some in evaluate.exact_match(
            Reader(), evaluate.institutions(facts, questions // 2, False), True
        ).items():
            marks.setdefault(kind, []).extend(some)
    return float(np.mean([mark for some in marks.values() for mark in some]))


def chosen_windows(options: argparse.Namespace, model: mo.Model) -> list[list[int]]:
    """The first windows of the text, of at most `--tokens` tokens together."""
    texts = demo_texts(model) if options.demo else [model.tokenizer.encode(options.text.read_text("utf-8"))]
    parts: list[list[int]] = []
    for part in windows(texts, options.window):
        if sum(map(len, parts)) + len(part) > options.tokens:
            break
        parts.append(part)
    print(
        f"{model.path}: {sum(map(len, parts))} tokens in {len(parts)} windows of at most {options.window}",
        file=sys.stderr,
    )
    return parts


def rows(options: argparse.Namespace, scratch: Path) -> Iterator[Row]:
    source = DEMO / "model" if options.demo else options.model
    floats = mo.load(source, threads=options.threads)
    parts = chosen_windows(options, floats)
    for bits, head, group in VARIANTS:
        folder = source if bits is None else scratch / f"{bits}-{head}-{group}"
        if bits is not None:
            mo.retrofit.quantize(source, folder, bits=bits, head=head, group=group or options.group)
        model = mo.load(folder, threads=options.threads)
        name = model.dtype if bits is None else f"int{bits}, head {model.dtype if head == 'keep' else head}"
        name += ", whole rows" if group == "channel" else ""
        row = Row(name, model.weight_bytes / 1e6, *measure(model.logits, floats.logits, parts))
        if not options.no_transformers:
            row.transformers = measure(transformers_logits(folder), floats.logits, parts)[0]
        if options.demo and options.questions:
            row.exact_match = exact_match(model, options.questions)
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", type=Path, help="a Hugging Face model directory")
    what.add_argument("--demo", action="store_true", help="the bundled model on held-out documents")
    parser.add_argument("--text", type=Path, help="UTF-8 text, with --model")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=20000, help="at most so many")
    parser.add_argument("--group", type=int, default=32)
    parser.add_argument("--questions", type=int, default=0, help="with --demo: exact match over so many")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--no-transformers", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not options.demo and options.text is None:
        parser.error("--model needs --text")

    print("| weights | MB | perplexity | KL | top-1 | transformers' perplexity | exact match |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        for row in rows(options, Path(scratch)):
            found.append(asdict(row))
            theirs = "" if row.transformers is None else f"{row.transformers:.4f}"
            match = "" if row.exact_match is None else f"{row.exact_match:.3f}"
            print(
                f"| {row.name} | {row.megabytes:.3f} | {row.perplexity:.4f} | {row.kl:.5f} | {row.top1:.4f} "
                f"| {theirs} | {match} |",
                flush=True,
            )
    if options.json:
        options.json.write_text(
            json.dumps({"schema": "modicum.benchmark.perplexity/1", "rows": found}, indent=2)
        )


if __name__ == "__main__":
    main()
