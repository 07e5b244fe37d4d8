"""The text that the small model reads, and the part of it that it never reads.

Each source is a list of documents.  Its last `HELD_OUT` characters' worth of documents is set aside; nothing
that was set aside is seen by the tokenizer either.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

HELD_OUT = 0.06

SOURCES = {
    # The same stories as tinystories_cased.txt, one per line: read from both files, the held-out stories
    # of one would be training text of the other.
    "tinystories": "tinystories/stories.jsonl",
    "wikitext2": "wikitext2/valid.txt",
    "grimm": "grimm/GrimmsFairyTales.txt",
    "tinyshakespeare": "tinyshakespeare/input.txt",
    "gsm8k": "gsm8k/train.jsonl",
}


def documents(name: str, file: Path) -> list[str]:
    """The documents of one source, in the order of the file."""
    text = file.read_text(encoding="utf-8")
    if name == "tinystories":
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        parts = [row if isinstance(row, str) else row["text"] for row in rows]
    elif name == "gsm8k":
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        parts = [f"Question: {row['question']}\nAnswer: {row['answer']}" for row in rows]
    elif name == "wikitext2":
        parts = re.split(r"(?m)^(?= = [^=\n]+ = \s*$)", text)
    elif name == "grimm":
        parts = re.split(r"\n\n\n+(?=[A-Z][A-Z ,;'’\[\]-]+\n)", text)
    else:
        # Plays run on; speeches are gathered into pieces of about a scene's length.
        parts = ["\n\n".join(speeches) for speeches in gather(re.split(r"\n\n+", text), 12_000)]
    return [part.strip() for part in parts if part.strip()]


def gather(parts: list[str], size: int) -> list[list[str]]:
    """Runs of consecutive parts of about `size` characters each."""
    runs: list[list[str]] = [[]]
    for part in parts:
        if sum(map(len, runs[-1])) >= size:
            runs.append([])
        runs[-1].append(part)
    return runs


def split(parts: list[str], share: float = HELD_OUT) -> tuple[list[str], list[str]]:
    """Documents to learn from, and the last ones with at least `share` of the characters."""
    wanted, held = share * sum(map(len, parts)), len(parts)
    while held > 1 and sum(map(len, parts[held:])) < wanted:
        held -= 1
    return parts[:held], parts[held:]


def read(folder: Path) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Training text and held-out text by source."""
    learn, held_out = {}, {}
    for name, path in SOURCES.items():
        learn[name], held_out[name] = split(documents(name, folder / path))
    return learn, held_out
