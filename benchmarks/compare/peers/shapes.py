# SPDX-License-Identifier: Apache-2.0
"""Random bf16 checkpoints of real models' shapes: speed, size and memory are real, what they say is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# transformers adds this token to any tokenizer of a qwen2 model that lacks it.
UNKNOWN = "<|endoftext|>"


@dataclass(frozen=True)
class Shape:
    """What config.json says, in transformers' names."""

    name: str
    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    rope_theta: float

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def layer_weights(self) -> int:
        """Weights that every token is multiplied with, the head aside."""
        heads = self.num_attention_heads + self.num_key_value_heads
        attention = 2 * self.hidden_size * heads * self.head_dim
        return self.num_hidden_layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    @property
    def head_weights(self) -> int:
        return self.hidden_size * self.vocab_size

    def flop(self, begin: int, tokens: int, logits: int = 1) -> float:
        """Of `tokens` tokens after `begin`, causal, with `logits` heads; a multiply-add counts as two."""
        seen = tokens * begin + tokens * (tokens + 1) / 2
        attention = 4 * seen * self.num_hidden_layers * self.num_attention_heads * self.head_dim
        return 2.0 * (tokens * self.layer_weights + logits * self.head_weights) + attention

    def kv_bytes(self, tokens: int) -> int:
        """Of bf16 keys and values."""
        return 4 * tokens * self.num_hidden_layers * self.num_key_value_heads * self.head_dim


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("qwen2.5-0.5b", "qwen2", 151936, 896, 24, 14, 2, 4864, 1e6),
        Shape("smollm2-135m", "llama", 49152, 576, 30, 9, 3, 1536, 1e5),
        Shape("llama-3.2-1b", "llama", 128256, 2048, 16, 32, 8, 8192, 5e5),
        Shape("tiny", "llama", 512, 64, 2, 4, 2, 96, 1e4),  # to try a benchmark, not to measure
    )
}


def written_once(folder: Path, write: Callable[[Path], None]) -> Path:
    """`folder`, filled by `write` beside it first where it is not there yet."""
    if not folder.exists():
        unfinished = folder.with_name(folder.name + ".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        write(unfinished)
        unfinished.rename(folder)
    return folder


def checkpoint(cache: Path, shape: Shape, *, context: int = 32768) -> Path:
    """The random checkpoint with a tokenizer whose token i is written `t<i>` (but for the third)."""
    name = shape.name if context == 32768 else f"{shape.name}-{context}"

    def write(folder: Path) -> None:
        _write_weights(folder, shape, context)
        _write_tokenizer(folder, shape.vocab_size)

    return written_once(cache / name / "bf16", write)


def readable(cache: Path, shape: Shape) -> Path:
    """A cache whose checkpoint is that of `cache` with a tokenizer that modicum reads: the same words."""

    def write(folder: Path) -> None:
        weights = checkpoint(cache, shape)
        for file in weights.iterdir():
            (folder / file.name).symlink_to(file.resolve())
        tokenizer = json.loads((weights / "tokenizer.json").read_text())
        # Byte pairs of which none is ever joined: a word that is in the vocabulary is taken whole.
        pieces = {"type": "BPE", "merges": [], "ignore_merges": True, "fuse_unk": True}
        tokenizer["model"] |= pieces
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))

    return written_once(cache / "cag" / shape.name / "bf16", write).parents[1]


def bytes_per_token(folder: Path) -> int:
    """Bytes of all weights, but of an embedding beside a head of its own only a row is read: none."""
    sizes: dict[str, int] = {}
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        header.pop("__metadata__", None)
        sizes |= {name: info["data_offsets"][1] - info["data_offsets"][0] for name, info in header.items()}
    if any(name.startswith("lm_head.") for name in sizes):
        sizes.pop("model.embed_tokens.weight")
    return sum(sizes.values())


def _write_weights(folder: Path, shape: Shape, context: int) -> None:
    import torch
    import transformers

    sizes = {
        name: getattr(shape, name)
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "intermediate_size",
        )
    }
    kind = {"qwen2": transformers.Qwen2Config, "llama": transformers.LlamaConfig}[shape.model_type]
    config: Any = kind(
        **sizes,
        max_position_embeddings=context,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=True,
        initializer_range=0.02,
        bos_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    # transformers begins with zero biases; others must not be able to leave them out unseen.
    for name, values in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(values, std=0.02)
    model.save_pretrained(folder)


def _write_tokenizer(folder: Path, size: int) -> None:
    """Some converters insist on one. A word for each token, so that none of them can refuse a piece of it."""
    words = ["t0", "t1", UNKNOWN, *(f"t{i}" for i in range(3, size))]
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {word: i for i, word in enumerate(words)},
            "unk_token": UNKNOWN,
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    names = {"bos_token": "t0", "eos_token": "t1", "unk_token": UNKNOWN}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
