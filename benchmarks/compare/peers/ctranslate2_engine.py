# SPDX-License-Identifier: Apache-2.0
"""CTranslate2 through its generator, which takes token strings and always searches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import ctranslate2
import numpy as np

from peers.engine import Engine, Setup, timed
from peers.shapes import written_once


class CTranslate2(Engine):
    def __init__(self, folder: Path, threads: int, compute: str) -> None:
        self.generator = ctranslate2.Generator(
            str(folder), device="cpu", inter_threads=1, intra_threads=threads, compute_type=compute
        )

    def generate(self, prompt: Sequence[int], count: int) -> float:
        words = [f"t{i}" for i in prompt]
        return timed(
            lambda: self.generator.generate_batch(
                [words], max_length=count, min_length=count, sampling_topk=1, include_prompt_in_result=False
            )
        )[0]

    def prefill(self, tokens: Sequence[int]) -> float:
        return self.generate(tokens, 1)

    def decode(self, prompt: Sequence[int], tokens: Sequence[int]) -> float:
        """It has no step: the difference between a long and a short generation."""
        return self.generate(prompt, len(tokens) + 1) - self.generate(prompt, 1)

    def beam_search(self, prompt: Sequence[int], beams: int, count: int) -> list[int]:
        results = self.generator.generate_batch(
            [[f"t{i}" for i in prompt]],
            beam_size=beams,
            max_length=count,
            min_length=count,
            include_prompt_in_result=False,
        )
        return results[0].sequences_ids[0]

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        view = self.generator.forward_batch([list(tokens)])
        return np.array(view)[0, -1].astype(np.float32)


def prepare(setup: Setup, format: str) -> Callable[[], Engine]:
    def write(folder: Path) -> None:
        converter = ctranslate2.converters.TransformersConverter(str(setup.checkpoint))
        converter.convert(str(folder / "model"), quantization=format)

    folder = written_once(setup.cache / f"ctranslate2-{format}", write) / "model"
    return lambda: CTranslate2(folder, setup.threads, format)
