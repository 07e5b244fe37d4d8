# SPDX-License-Identifier: Apache-2.0
"""What is merged: a random checkpoint, two that were made from it, and a LoRA adapter for it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers.shapes import Shape, checkpoint, written_once

NOISE = 2e-3  # standard deviation of a tuned model's differences, of weights of 2e-2
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Family:
    base: Path
    tuned: tuple[Path, ...]
    adapter: Path

    @property
    def bytes(self) -> int:
        """Of one model's weights."""
        return sum(file.stat().st_size for file in self.base.glob("*.safetensors"))

    def read(self) -> None:
        """All files, so that the first to merge them finds them in memory as everybody else does."""
        for folder in (self.base, *self.tuned, self.adapter):
            for file in folder.iterdir():
                with file.open("rb") as stream:
                    while stream.read(1 << 24):
                        pass


def family(work: Path, shape: Shape) -> Family:
    """Made once, in `work`, the same on every machine."""
    base = checkpoint(work, shape)
    folder = base.parent
    tuned = tuple(
        written_once(folder / f"tuned-{seed}", lambda to, seed=seed: _write_tuned(base, to, seed))
        for seed in (1, 2)
    )
    return Family(base, tuned, written_once(folder / "adapter", lambda to: _write_adapter(base, to)))


def _write_tuned(base: Path, folder: Path, seed: int) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(seed)

    def moved(weights: Any) -> Any:
        noise = torch.randn(weights.shape, generator=generator)
        return (weights.float() + NOISE * noise).to(weights.dtype)

    for file in sorted(base.iterdir()):
        if file.suffix == ".safetensors":
            tensors = {name: moved(weights) for name, weights in sorted(load_file(file).items())}
            save_file(tensors, folder / file.name, metadata={"format": "pt"})
        else:
            shutil.copy(file, folder)


def _write_adapter(base: Path, folder: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    adapted = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=LINEAR))
    for name, values in adapted.named_parameters():
        if "lora_B" in name:  # begins as zero; with these, updates are about as large as NOISE
            torch.nn.init.normal_(values, std=0.01)
    adapted.save_pretrained(folder)
