# SPDX-License-Identifier: Apache-2.0
"""modicum, on the checkpoint as it is or as `modicum quantize` writes it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import modicum as mo
import numpy as np

from peers.engine import Engine, Setup, UnavailableError, timed
from peers.shapes import written_once

GROUP = 32


class Modicum(Engine):
    def __init__(self, folder: Path, threads: int) -> None:
        self.model = mo.load(folder, threads=threads)
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

    def branches(self, tokens: Sequence[int]) -> float:
        leaves = mo.extend([(self.trunk, [token]) for token in tokens])
        return timed(lambda: step(leaves, tokens))[0]

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        return self.model.tree().extend(tokens).logits()


def step(leaves: list[Any], tokens: Sequence[int]) -> list[np.ndarray]:
    """One token more on every leaf, and the logits of each."""
    grown = mo.extend([(leaf, [token]) for leaf, token in zip(leaves, tokens, strict=True)])
    return [leaf.logits() for leaf in grown]


def quantised(setup: Setup, bits: int, *, head: bool) -> Path:
    command = [sys.executable, "-m", "modicum", "quantize"]
    known = subprocess.run([*command, "--help"], capture_output=True, text=True)
    if known.returncode != 0:
        raise UnavailableError("this modicum has no command `quantize`")

    def write(folder: Path) -> None:
        out = folder / "model"
        options = ["--model", setup.checkpoint, "--out", out, "--bits", bits, "--group", GROUP]
        if head and "--quantize-head" in known.stdout:
            options.append("--quantize-head")
        subprocess.run([*command, *map(str, options)], check=True, stdout=subprocess.DEVNULL)

    return written_once(setup.cache / f"modicum-int{bits}", write) / "model"


def load(setup: Setup, format: str, *, quantise_head: bool = False) -> Engine:
    folder = setup.checkpoint
    if format.startswith("int"):
        folder = quantised(setup, int(format.removeprefix("int")), head=quantise_head)
    return Modicum(folder, setup.threads)
