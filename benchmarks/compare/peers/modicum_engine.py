# SPDX-License-Identifier: Apache-2.0
"""modicum, on the checkpoint as it is or as `modicum quantize` writes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import modicum as mo
import numpy as np

from peers.engine import Engine, Setup, timed
from peers.shapes import written_once

GROUP = 32


class Modicum(Engine):
    def __init__(self, folder: Path, threads: int, dtype: str = "auto") -> None:
        self.model = mo.load(folder, dtype=dtype, threads=threads)
        self.trunk: Any = None

    def prefill(self, tokens: Sequence[int]) -> float:
        root = self.model.tree()
        return timed(lambda: root.extend(tokens).logits())[0]

    def decode(self, prompt: Sequence[int], tokens: Sequence[int]) -> float:
        leaf = self.model.tree().extend(prompt)

        def steps() -> None:
            nonlocal leaf
            for token in tokens:
                leaf = leaf.extend([token])
                leaf.logits()

        return timed(steps)[0]

    def keep_trunk(self, tokens: Sequence[int]) -> float:
        seconds, self.trunk = timed(lambda: self.model.tree().extend(tokens))
        return seconds

    def question(self, tokens: Sequence[int]) -> float:
        return timed(lambda: self.trunk.extend(tokens).logits())[0]

    def open_trunk(self, file: str) -> float:
        # The tokenizer comes with the model. The peers are measured without one.
        _ = self.model.tokenizer
        # Its branch is given out once every checksum was compared.
        seconds, self.trunk = timed(lambda: mo.cag.open(file, self.model).branch())
        return seconds

    def question_logits(self, tokens: Sequence[int]) -> np.ndarray:
        return self.trunk.extend(tokens).logits()

    def branches(self, tokens: Sequence[int]) -> float:
        leaves = mo.extend([(self.trunk, [token]) for token in tokens])
        return timed(lambda: step(leaves, tokens))[0]

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        return self.model.tree().extend(tokens).logits()

    def beam_search(self, prompt: Sequence[int], beams: int, count: int) -> list[int]:
        found = self.model.beam_search(
            prompt, beams=beams, max_new_tokens=count, min_new_tokens=count, stop_ids=[]
        )
        self.peak_tokens = len(prompt) + found.stats.peak_tokens
        return found[0].ids


def step(leaves: list[Any], tokens: Sequence[int]) -> np.ndarray:
    """One token more on every leaf, and the logits of each."""
    return mo.logits(mo.extend([(leaf, [token]) for leaf, token in zip(leaves, tokens, strict=True)]))


def quantised(setup: Setup, format: str) -> Path:
    """ "int8", "int4": by groups; "int8 channel": whole rows. Head included, as the peers' integers are."""
    kind, _, group = format.partition(" ")

    def write(folder: Path) -> None:
        options = ["--model", setup.checkpoint, "--out", folder / "model", "--bits", kind.removeprefix("int")]
        options += ["--group", group or GROUP, "--head", kind]
        command = [sys.executable, "-m", "modicum", "quantize", *map(str, options)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    return written_once(setup.cache / f"modicum-{format.replace(' ', '-')}", write) / "model"


def readable(folder: Path) -> Path:
    """`folder`, without a tokenizer that modicum does not read: a search would end in writing its text."""
    if json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["type"] == "BPE":
        return folder

    def write(bare: Path) -> None:
        for file in folder.iterdir():
            if not file.name.startswith("tokenizer"):
                os.link(file, bare / file.name)

    return written_once(folder.with_name(f"{folder.name}-ids"), write)


def prepare(setup: Setup, format: str) -> Callable[[], Engine]:
    folder = quantised(setup, format) if format.startswith("int") else setup.checkpoint
    dtype = "f32" if format == "f32" else "auto"
    return lambda: Modicum(readable(folder), setup.threads, dtype)
