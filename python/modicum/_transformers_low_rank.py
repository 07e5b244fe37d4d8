"""Layers of two factors in transformers. Imports torch: only :mod:`modicum.interop` loads this module."""

from __future__ import annotations

import re
from typing import Any

import torch
import transformers
from torch import nn

__all__ = ["register"]

_FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")


class LowRankLinear(nn.Module):  # type: ignore[misc]  # torch is not type-checked here
    """y = U (V x) + b with `weight_u` U [outputs, rank] and `weight_v` V [rank, inputs]."""

    def __init__(self, inputs: int, outputs: int, rank: int, bias: bool) -> None:
        super().__init__()
        self.weight_u = nn.Parameter(torch.empty(outputs, rank))
        self.weight_v = nn.Parameter(torch.empty(rank, inputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(nn.functional.linear(x, self.weight_v), self.weight_u, self.bias)


def register() -> None:
    """Lets AutoModelForCausalLM make such models. Others are made by the classes that made them before."""
    for family in _FAMILIES:
        base = getattr(transformers, f"{family}ForCausalLM")
        config = getattr(transformers, f"{family}Config")
        transformers.AutoModelForCausalLM.register(config, _low_rank_class(base, config), exist_ok=True)


def _ranks(config: Any) -> dict[str, int]:
    """Names and patterns of config.json's modicum.low_rank, in modicum's order."""
    section = getattr(config, "modicum", None) or {}
    return dict(sorted(section.get("low_rank", {}).get("modules", {}).items()))


def _rank_of(ranks: dict[str, int], module: str) -> int | None:
    if module in ranks:
        return ranks[module]
    for name, rank in ranks.items():
        if name.startswith("re:") and re.match(name.removeprefix("re:"), module):
            return rank
    return None


def _split_layers(model: Any, ranks: dict[str, int]) -> None:
    for name, module in list(model.named_modules()):
        rank = _rank_of(ranks, name)
        if rank is None or not isinstance(module, nn.Linear):
            continue
        parent, _, child = name.rpartition(".")
        factors = LowRankLinear(module.in_features, module.out_features, rank, module.bias is not None)
        setattr(model.get_submodule(parent), child, factors.to(module.weight.dtype))


def _low_rank_class(base: Any, config_class: Any) -> type:
    class LowRank(base):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            _split_layers(self, _ranks(config))

        @classmethod
        def from_pretrained(cls, path: Any, *arguments: Any, **options: Any) -> Any:
            config = options.get("config") or config_class.from_pretrained(path)
            made = super().from_pretrained if _ranks(config) else base.from_pretrained
            return made(path, *arguments, **options)

        @classmethod
        def _from_config(cls, config: Any, **options: Any) -> Any:
            made = super()._from_config if _ranks(config) else base._from_config
            return made(config, **options)

        def _init_weights(self, module: nn.Module) -> None:
            super()._init_weights(module)
            if isinstance(module, LowRankLinear):
                for parameter in module.parameters():
                    nn.init.normal_(parameter, std=self.config.initializer_range)

    LowRank.__name__ = LowRank.__qualname__ = f"LowRank{base.__name__}"
    LowRank.config_class = config_class
    return LowRank
