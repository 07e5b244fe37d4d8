# SPDX-License-Identifier: Apache-2.0
"""One checkpoint in modicum and in transformers, both in float32, for the parity tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import modicum as mo
import torch
import transformers

torch.set_num_threads(1)  # models this small only wait for the others

KINDS = ("llama", "qwen2", "qwen3")
VOCABULARY = 160


@dataclass(frozen=True)
class Pair:
    """The same weights twice: `ours` is a modicum.Model, `theirs` a transformers model."""

    ours: Any
    theirs: Any
    prompts: list[list[int]]
    tokenizer: Any = None

    def hf_generate(self, prompt: Sequence[int], stop_ids: Sequence[int], **options: Any) -> Any:
        return hf_generate(self.theirs, prompt, stop_ids, **options)


def hf_generate(model: Any, prompt: Sequence[int], stop_ids: Sequence[int], **options: Any) -> Any:
    """transformers' output with scores and logits; `sequences` holds the prompt too."""
    ids = torch.tensor([list(prompt)])
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        eos_token_id=list(stop_ids) or None,
        pad_token_id=0,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        **options,
    )


def cut(ids: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    """`ids` up to and with the first stop token: what transformers pads after it goes."""
    for i, token in enumerate(ids):
        if token in stop_ids:
            return list(ids[: i + 1])
    return list(ids)


@contextmanager
def smallest_margin() -> Iterator[list[float]]:
    """Records how near transformers came to another choice: the gaps at which its top-k selections cut."""
    gaps: list[float] = [float("inf")]
    topk = torch.topk

    def recording(values: Any, k: int, *args: Any, **kwargs: Any) -> Any:
        ordered = values.sort(dim=-1, descending=True).values[..., : k + 1]
        between = (ordered[..., :-1] - ordered[..., 1:])[ordered[..., 1:] > -1e8]
        gaps[0] = min([gaps[0], *between.tolist()])
        return topk(values, k, *args, **kwargs)

    torch.topk = recording
    try:
        yield gaps
    finally:
        torch.topk = topk


def _config(kind: str) -> Any:
    classes = {
        "llama": transformers.LlamaConfig,
        "qwen2": transformers.Qwen2Config,
        "qwen3": transformers.Qwen3Config,
    }
    return classes[kind](
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        initializer_range=0.4,  # large, so that logits differ by far more than float32 rounds
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )


def _without_defaults(model: Any) -> Any:
    model.generation_config = transformers.GenerationConfig()
    return model.eval()


def random_pair(kind: str, folder: Path) -> Pair:
    """A tiny model with grouped heads and random weights, written by transformers to `folder`."""
    torch.manual_seed(KINDS.index(kind))
    theirs = transformers.AutoModelForCausalLM.from_config(_config(kind)).to(torch.float32)
    theirs.save_pretrained(folder)
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(4, VOCABULARY, (n,), generator=generator).tolist() for n in (1, 3, 8, 21)]
    return Pair(mo.load(folder, dtype="f32"), _without_defaults(theirs), prompts)


def stored_pair(folder: Path, texts: Sequence[str]) -> Pair:
    """A model from `folder` with its tokenizer."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prompts = [tokenizer(text)["input_ids"] for text in texts]
    return Pair(mo.load(folder, dtype="f32"), _without_defaults(theirs), prompts, tokenizer)
