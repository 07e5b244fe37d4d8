# SPDX-License-Identifier: Apache-2.0
"""OpenVINO GenAI as a user gets it: weights by optimum-intel, everything else the CPU plugin's default.

Its defaults quantise the cache of keys and values too, and compute in bf16 where the processor can.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import openvino
import openvino_genai

from peers.engine import Engine, Setup, timed
from peers.shapes import written_once


class OpenVino(Engine):
    def __init__(self, folder: Path, threads: int) -> None:
        self.pipeline = openvino_genai.LLMPipeline(str(folder), "CPU", INFERENCE_NUM_THREADS=threads)

    def generate(self, prompt: Sequence[int], count: int) -> float:
        ids = openvino.Tensor(np.array([prompt], dtype=np.int64))
        return timed(lambda: self.pipeline.generate(ids, generation(count)))[0]

    def prefill(self, tokens: Sequence[int]) -> float:
        return self.generate(tokens, 1)

    def decode(self, prompt: Sequence[int], tokens: Sequence[int]) -> float:
        """It has no step: the difference between a long and a short generation.

        The short one reads another prompt, as it would find the first one in its cache.
        """
        return self.generate(prompt, len(tokens) + 1) - self.generate(prompt[::-1], 1)

    def beam_search(self, prompt: Sequence[int], beams: int, count: int) -> list[int]:
        config = generation(count)
        config.num_beams = beams
        ids = openvino.Tensor(np.array([prompt], dtype=np.int64))
        return list(self.pipeline.generate(ids, config).tokens[0])


def generation(count: int) -> openvino_genai.GenerationConfig:
    """Of exactly `count` tokens."""
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.min_new_tokens, config.ignore_eos = count, count, True
    config.do_sample = False
    return config


def prepare(setup: Setup, format: str) -> Callable[[], Engine]:
    def write(folder: Path) -> None:
        options = ["--task", "text-generation-with-past", "--weight-format", format]
        if format == "int4":
            options += ["--group-size", "32"]  # widths of these models are no multiple of its usual 128
        python = os.environ.get("MODICUM_OPENVINO_EXPORT", sys.executable)
        command = [python, "-m", "optimum.commands.optimum_cli", "export", "openvino"]
        command += ["--model", str(setup.checkpoint), *options, str(folder / "model")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    folder = written_once(setup.cache / f"openvino-{format}", write) / "model"
    return lambda: OpenVino(folder, setup.threads)
