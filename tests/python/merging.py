# SPDX-License-Identifier: Apache-2.0
"""Small models that were made from one another, and what merging them by hand gives."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

torch.set_num_threads(1)  # models this small only wait for the others

SIZES = {
    "vocab_size": 160,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "eos_token_id": 2,
    "bos_token_id": 1,
}
IDS = np.random.default_rng(3).integers(0, SIZES["vocab_size"], 40).tolist()
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
HALF_STEP = {"f32": 2**-24, "f16": 2**-11, "bf16": 2**-8}  # of one rounding, relative
STEP = {name: 2 * half for name, half in HALF_STEP.items()}

Tensors = dict[str, torch.Tensor]


def write_base(
    folder: Path, kind: str = "Llama", *, seed: int = 1, dtype: str = "bf16", **fields: Any
) -> Path:
    """A checkpoint of random weights, with biases that are not zero."""
    torch.manual_seed(seed)
    config = getattr(transformers, kind + "Config")(**{**SIZES, **fields})
    model = transformers.AutoModelForCausalLM.from_config(config)
    for name, weight in model.named_parameters():
        mean = 1.0 if "norm" in name else 0.0
        torch.nn.init.normal_(weight, mean=mean, std=0.12)
    model.tie_weights()
    model.to(DTYPES[dtype]).save_pretrained(folder)
    return folder


def tensors_of(folder: Path) -> Tensors:
    """All tensors of a directory, shards or not."""
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 – safe_open is no dict
                tensors[name] = opened.get_tensor(name)
    return tensors


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def write_like(like: Path, folder: Path, tensors: Tensors, *, shards: int = 1, **fields: Any) -> Path:
    """The files of `like` with other tensors, and other fields in config.json."""
    folder.mkdir(parents=True)
    for file in like.iterdir():
        if "safetensors" not in file.name:
            shutil.copy(file, folder)
    (folder / "config.json").write_text(json.dumps({**config_of(like), **fields}))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    names = sorted(tensors)
    where = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[i::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        where.update(dict.fromkeys(part, file))
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def changed(tensors: Tensors, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Tensors:
    """Every tensor changed in f32 and rounded again to what it was."""
    return {name: change(name, tensor.float()).to(tensor.dtype) for name, tensor in tensors.items()}


def noise(seed: int, size: float = 0.05) -> Callable[[str, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def add(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor + size * torch.randn(tensor.shape, generator=generator)

    return add


def write_tuned(
    base: Path, folder: Path, seed: int, *, size: float = 0.05, dtype: str | None = None, **options: Any
) -> Path:
    """The base with noise in every tensor; in another dtype where one is named."""
    tensors = tensors_of(base)
    if dtype is not None:
        tensors = {name: tensor.to(DTYPES[dtype]) for name, tensor in tensors.items()}
    return write_like(base, folder, changed(tensors, noise(seed, size)), **options)


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def largest_difference(found: Tensors, expected: Tensors) -> float:
    """Of all elements, relative to the larger of the two, or to 2^-13 where terms in f32 cancel out."""
    assert set(found) == set(expected), set(found) ^ set(expected)
    worst = 0.0
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        a, b = found[name].double(), tensor.double()
        size = torch.maximum(a.abs(), b.abs()).clamp(min=2**-13)
        worst = max(worst, ((a - b).abs() / size).max().item())
    return worst


def equal(found: Tensors, expected: Tensors) -> bool:
    """Bit for bit."""
    assert set(found) == set(expected), set(found) ^ set(expected)
    return all(
        torch.equal(tensor.view(torch.uint8), expected[name].view(torch.uint8))
        and tensor.dtype == expected[name].dtype
        for name, tensor in found.items()
    )


def transformers_model(folder: Path) -> Any:
    """In float32, and nothing missing or left over."""
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), loading
    return model.eval()


def logits_of(model: Any, ids: list[int] = IDS) -> Any:
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].float().numpy()


def write_tokens(folder: Path, tokens: list[str]) -> Path:
    """A tokenizer of bytes (0 to 255) and the special `tokens`, in rows from 256 on."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in tokens])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
