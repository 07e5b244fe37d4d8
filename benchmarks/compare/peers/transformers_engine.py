# SPDX-License-Identifier: Apache-2.0
"""transformers with its default attention (scaled_dot_product_attention) and cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers

from peers.engine import Engine, Setup, timed


class Transformers(Engine):
    def __init__(self, setup: Setup) -> None:
        torch.set_num_threads(setup.threads)
        load = transformers.AutoModelForCausalLM.from_pretrained
        self.model = load(setup.checkpoint, dtype=torch.bfloat16).eval()
        self.trunk: Any = None

    @torch.inference_mode()
    def step(self, tokens: Sequence[int], past: Any) -> Any:
        ids = torch.tensor([list(tokens)])
        return self.model(ids, past_key_values=past, use_cache=True, logits_to_keep=1)

    def prefill(self, tokens: Sequence[int]) -> float:
        return timed(lambda: self.step(tokens, None))[0]

    def decode(self, prompt: Sequence[int], tokens: Sequence[int]) -> float:
        past = self.step(prompt, None).past_key_values

        def steps() -> None:
            for token in tokens:
                self.step([token], past)

        return timed(steps)[0]

    def keep_trunk(self, tokens: Sequence[int]) -> float:
        seconds, output = timed(lambda: self.step(tokens, None))
        self.trunk = output.past_key_values
        return seconds

    def question(self, tokens: Sequence[int]) -> float:
        seconds = timed(lambda: self.step(tokens, self.trunk))[0]
        self.trunk.crop(-len(tokens))
        return seconds

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        return self.step(tokens, None).logits[0, -1].float().numpy()


def load(setup: Setup, format: str) -> Engine:
    return Transformers(setup)
