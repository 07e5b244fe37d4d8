# SPDX-License-Identifier: Apache-2.0
"""transformers with its default attention (scaled_dot_product_attention) and cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import transformers

from peers.engine import Engine, Setup, timed


class Transformers(Engine):
    def __init__(self, folder: Path, threads: int, dtype: torch.dtype) -> None:
        torch.set_num_threads(threads)
        load = transformers.AutoModelForCausalLM.from_pretrained
        self.model = load(folder, dtype=dtype).eval()
        self.model.generation_config.eos_token_id = None  # a beam search runs to the end
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

    def save_trunk(self, tokens: Sequence[int], file: str) -> None:
        layers = self.step(tokens, None).past_key_values.layers
        arrays = {f"{i}.k": layer.keys.contiguous() for i, layer in enumerate(layers)}
        arrays |= {f"{i}.v": layer.values.contiguous() for i, layer in enumerate(layers)}
        safetensors.torch.save_file(arrays, file)

    @torch.inference_mode()
    def open_trunk(self, file: str) -> float:
        def restore() -> transformers.DynamicCache:
            arrays = safetensors.torch.load_file(file)
            layers = range(len(arrays) // 2)
            return transformers.DynamicCache([(arrays[f"{i}.k"], arrays[f"{i}.v"]) for i in layers])

        seconds, self.trunk = timed(restore)
        return seconds

    def question_logits(self, tokens: Sequence[int]) -> np.ndarray:
        values = self.step(tokens, self.trunk).logits[0, -1].float().numpy()
        self.trunk.crop(-len(tokens))
        return values

    def question(self, tokens: Sequence[int]) -> float:
        seconds = timed(lambda: self.step(tokens, self.trunk))[0]
        self.trunk.crop(-len(tokens))
        return seconds

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        return self.step(tokens, None).logits[0, -1].float().numpy()

    @torch.inference_mode()
    def beam_search(self, prompt: Sequence[int], beams: int, count: int, past: Any = None) -> list[int]:
        ids = torch.tensor([list(prompt)])
        output = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=past,
            do_sample=False,
            num_beams=beams,
            max_new_tokens=count,
            pad_token_id=0,
        )
        return output[0, len(prompt) :].tolist()

    @torch.inference_mode()
    def score(self, prompt: Sequence[int], ids: Sequence[int]) -> float:
        tokens = torch.tensor([[*prompt, *ids]])
        logits = self.model(tokens[:, :-1], logits_to_keep=len(ids)).logits[0]
        chosen = torch.log_softmax(logits.double(), -1).gather(1, tokens[0, -len(ids) :, None])
        return chosen.mean().item()


class SharedPrefill(Transformers):
    """Beam search as somebody writes it who knows that `generate` reads the prompt once for every beam."""

    @torch.inference_mode()
    def beam_search(self, prompt: Sequence[int], beams: int, count: int, past: Any = None) -> list[int]:
        past = self.step(prompt[:-1], past).past_key_values  # the last token gives the first logits
        past.batch_repeat_interleave(beams)
        return super().beam_search(prompt, beams, count, past)


class Tree(Transformers):
    """Beam search by modicum's engine over the transformers model: `mo.search.from_transformers`."""

    def __init__(self, folder: Path, threads: int, dtype: torch.dtype) -> None:
        super().__init__(folder, threads, dtype)
        import modicum as mo

        self.searcher = mo.search.from_transformers(self.model)

    def beam_search(self, prompt: Sequence[int], beams: int, count: int, past: Any = None) -> list[int]:
        found = self.searcher.beam_search(
            prompt, beams=beams, max_new_tokens=count, min_new_tokens=count, stop_ids=[]
        )
        return found[0].ids


def prepare(setup: Setup, format: str) -> Callable[[], Engine]:
    """ "f32", "bf16"; "… shared": beams begin from one prefill; "… tree": modicum's engine searches."""
    name, _, way = format.partition(" ")
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[name]
    engine = {"": Transformers, "shared": SharedPrefill, "tree": Tree}[way]
    return lambda: engine(setup.checkpoint, setup.threads, dtype)
