# SPDX-License-Identifier: Apache-2.0
"""What an engine can be asked to do, and the list of them."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from peers import memory
from peers.shapes import Shape

PROMPT = 16  # tokens before a measured decode


class UnavailableError(Exception):
    """This engine cannot run here; the text says why in a line."""


@dataclass(frozen=True)
class Setup:
    """What every engine starts from: the bf16 checkpoint is there, an engine adds its own beside it once."""

    shape: Shape
    checkpoint: Path
    threads: int
    context: int = 2304
    """Tokens that a sequence may hold: the longest measured prompt and what follows it."""

    @property
    def cache(self) -> Path:
        return self.checkpoint.parent

    def tokens(self, count: int, seed: int = 0) -> list[int]:
        """Random ids, the same for every engine; none of them special."""
        return np.random.default_rng(seed).integers(3, self.shape.vocab_size, count).tolist()


class Engine:
    """A loaded model. A subclass measures what it can; times are wall seconds of the work alone."""

    def prefill(self, tokens: Sequence[int]) -> float:
        """Seconds to read `tokens` into an empty context, up to the logits of the next one."""
        raise NotImplementedError

    def decode(self, prompt: Sequence[int], tokens: Sequence[int]) -> float:
        """Seconds for `tokens` one by one, each with its logits, after `prompt`, which is not timed."""
        raise NotImplementedError

    def keep_trunk(self, tokens: Sequence[int]) -> float:
        """Reads the trunk that `question` and `branches` stand on."""
        raise NotImplementedError

    def save_trunk(self, tokens: Sequence[int], file: str) -> None:
        """Reads `tokens` and writes to `file` what `open_trunk` needs."""
        raise NotImplementedError

    def open_trunk(self, file: str) -> float:
        """Seconds to have the trunk of `save_trunk` back, as a process does that never read it."""
        raise NotImplementedError

    def question(self, tokens: Sequence[int]) -> float:
        """Seconds from the trunk in memory through `tokens` to the logits of the next; the trunk stays."""
        raise NotImplementedError

    def question_logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Of the token after the trunk and `tokens`, f32 [vocabulary]; the trunk stays."""
        raise NotImplementedError

    def branches(self, tokens: Sequence[int]) -> float:
        """Seconds of one step in which each of `tokens` is a branch of its own on the trunk, with logits."""
        raise NotImplementedError

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Of the token after `tokens`, f32 [vocabulary]."""
        raise NotImplementedError

    def beam_search(self, prompt: Sequence[int], beams: int, count: int) -> list[int]:
        """The best continuation of exactly `count` tokens; no token ends it."""
        raise NotImplementedError

    peak_tokens = 0
    """Tokens that the last search held at its most, the prompt's included, where the engine tells."""

    def beam(self, prompt: Sequence[int], beams: int, count: int) -> dict[str, Any]:
        """`beam_search` with its seconds, from the prompt on, and the most memory it held meanwhile."""
        memory.forget_peak()
        seconds, ids = timed(lambda: self.beam_search(prompt, beams, count))
        return {"seconds": seconds, "peak": memory.peak(), "ids": ids, "tokens": self.peak_tokens}

    def held(self) -> int:
        """Bytes of memory between calls."""
        return memory.held()

    def score(self, prompt: Sequence[int], ids: Sequence[int]) -> float:
        """Mean log-probability of `ids` after `prompt`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Contestant:
    """One engine in one format, which runs in one process."""

    engine: str
    format: str
    module: str
    measures: tuple[str, ...] = ("prefill", "decode")

    @property
    def name(self) -> str:
        return f"{self.engine} {self.format}"

    def load(self, setup: Setup) -> tuple[float, Engine]:
        """The loaded engine and how many seconds that took, without imports and conversions."""
        module = importlib.import_module(f"peers.{self.module}")
        return timed(module.prepare(setup, self.format))


_ALL = ("prefill", "decode", "keep_trunk", "question", "open_trunk")
CONTESTANTS = [
    Contestant("modicum", "bf16", "modicum_engine", (*_ALL, "branches")),
    Contestant("modicum", "int8", "modicum_engine"),
    Contestant("modicum", "int8 channel", "modicum_engine"),
    Contestant("modicum", "int4", "modicum_engine"),
    Contestant("llama.cpp", "bf16", "llama_cpp_engine", _ALL),
    Contestant("llama.cpp", "q8_0", "llama_cpp_engine"),
    Contestant("llama.cpp", "q4_0", "llama_cpp_engine"),
    Contestant("llama.cpp", "q4_0 pure", "llama_cpp_engine"),
    Contestant("transformers", "bf16", "transformers_engine", _ALL),
    Contestant("CTranslate2", "int8", "ctranslate2_engine"),
    Contestant("OpenVINO GenAI", "int8", "openvino_engine"),
    Contestant("OpenVINO GenAI", "int4", "openvino_engine"),
    Contestant("modicum", "f32", "modicum_engine", ("beam",)),
    Contestant("transformers", "f32", "transformers_engine", ("beam",)),
    Contestant("transformers", "f32 shared", "transformers_engine", ("beam",)),
    Contestant("transformers", "bf16 shared", "transformers_engine", ("beam",)),
    Contestant("transformers", "f32 tree", "transformers_engine", ("beam",)),
    Contestant("CTranslate2", "float32", "ctranslate2_engine", ("beam",)),
]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result
