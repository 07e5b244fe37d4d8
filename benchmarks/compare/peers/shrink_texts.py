# SPDX-License-Identifier: Apache-2.0
"""What each model reads: documents to calibrate on, and others to be judged by."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).parents[3]
DATA = Path(os.environ.get("MODICUM_DATA", ROOT.parent / "shared" / "data"))
EVALUATION = 0.1  # of the documents of a text that has no part of its own for it


@dataclass(frozen=True)
class Texts:
    """Documents; none is on both sides."""

    name: str
    calibration: list[str]
    evaluation: list[str]


def split(documents: Sequence[str], share: float = EVALUATION) -> tuple[list[str], list[str]]:
    """The last documents with at least `share` of the characters are for evaluation."""
    wanted, at = share * sum(map(len, documents)), len(documents)
    while at > 1 and sum(map(len, documents[at:])) < wanted:
        at -= 1
    return list(documents[:at]), list(documents[at:])


def read_documents(path: Path) -> list[str]:
    """Of a .jsonl file one a line, of another one an empty line or more apart."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return [_text(json.loads(line)) for line in text.splitlines() if line.strip()]
    return [part for part in text.split("\n\n") if part.strip()]


def _text(row: Any) -> str:
    return row if isinstance(row, str) else str(row["text"])


def tinystories() -> Texts:
    """Of stories260K and babyllama-361, which knows characters: both were trained on such stories."""
    return Texts("TinyStories", *split(read_documents(DATA / "corpora" / "tinystories" / "stories.jsonl")))


def demo(calibration: int = 400, evaluation: int = 60, seed: int = 2026) -> Texts:
    """Documents and questions of invented institutions as the demo model is asked them; those that judge
    have names that its training never showed."""
    sys.path.insert(0, str(ROOT / "examples" / "demo"))
    from generator import make_institution
    from tokens import prompt_head, prompt_question

    rng = random.Random(seed)

    def make(count: int, held_out: bool) -> list[str]:
        places = [
            make_institution(rng.randrange(2**40), rng.randint(4, 24), held_out=held_out)
            for _ in range(count)
        ]
        return [
            prompt_head(place.documents).removeprefix("<|bos|>")
            + "".join(f"{prompt_question(q.text)}{q.answer}<|end|>\n" for q in place.questions)
            for place in places
        ]

    return Texts("the demo's generator", make(calibration, False), make(evaluation, True))


def small_model(folder: Path) -> Texts:
    """What examples/small_model learnt from, and its held-out parts."""
    sys.path.insert(0, str(ROOT / "examples" / "small_model"))
    from text import read

    learnt, _ = read(DATA / "corpora")
    held_out = [
        document
        for path in sorted((folder / "held_out").glob("*.jsonl"))
        for document in read_documents(path)
    ]
    return Texts("the small model's sources", [d for part in learnt.values() for d in part], held_out)


def texts_of(folder: Path, calibration: Sequence[Path] = (), evaluation: Sequence[Path] = ()) -> Texts:
    """The given files; without any, what is known of the model in `folder`."""
    if calibration:
        learn = [document for path in calibration for document in read_documents(path)]
        judge = [document for path in evaluation for document in read_documents(path)]
        return Texts(", ".join(p.name for p in calibration), *((learn, judge) if judge else split(learn)))
    if folder.resolve() == (ROOT / "examples" / "demo" / "model").resolve():
        return demo()
    return small_model(folder) if (folder / "held_out").is_dir() else tinystories()


def encode(tokenizer: Any, documents: Sequence[str], begin: Sequence[int], seed: int = 0) -> list[int]:
    """One stream of ids: documents in an order that mixes sources, each behind `begin`."""
    order = list(documents)
    random.Random(seed).shuffle(order)
    return [token for text in order for token in (*begin, *tokenizer.encode(text, add_special_tokens=False))]


def calibration_ids(
    stream: Sequence[int], begin: Sequence[int], tokens: int, length: int, seed: int
) -> npt.NDArray[np.int32]:
    """Windows of the stream that do not overlap, chosen by `seed`: int32 [sequences, length]."""
    payload = length - len(begin)
    rows = np.asarray(stream[: len(stream) // payload * payload], dtype=np.int32).reshape(-1, payload)
    wanted = max(1, round(tokens / length))
    if wanted > len(rows):
        raise ValueError(f"tokens: expected at most {len(rows) * length}, got {tokens}")
    chosen = rows[np.random.default_rng(seed).permutation(len(rows))[:wanted]]
    start = np.broadcast_to(np.asarray(begin, dtype=np.int32), (wanted, len(begin)))
    return np.ascontiguousarray(np.concatenate([start, chosen], axis=1))
