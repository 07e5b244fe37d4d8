# SPDX-License-Identifier: Apache-2.0
"""A made-up model for the planner: its shape, its errors, its losses and its speed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import modicum as mo
from modicum.retrofit import CostModel, Format, Plan, Planned, Target
from modicum.retrofit.candidates import Space
from modicum.retrofit.loss_model import ErrorCurves, Trial
from modicum.retrofit.plan_costs import DecodeSpeed, WeightBytes
from modicum.retrofit.planner import choose

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 16,
    "vocab_size": 300,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}
LAYERS, WIDTH, HEADS = 8, 1024, 8
SENSITIVITY = [1, 9, 2, 8, 3, 7, 4, 6]  # of each layer to rounding
TURNS = [9, 5, 4, 1, 2, 6, 7, 8]  # of each layer, what it turns hidden states by


def survey(**_: Any) -> dict[str, Any]:
    layers = [
        {
            "layer": i,
            "ffn": {str(w): (1 - w / WIDTH) ** 2 for w in range(512, WIDTH, 64)},
            "kv": {
                str(h): {"score": 0.1 * (1 - h / HEADS), "value": 0.05 * (1 - h / HEADS)} for h in (4, 2, 1)
            },
            "bits": {"8": 1e-5 * s, "4": 1e-3 * s},
        }
        for i, s in enumerate(SENSITIVITY)
    ]
    angles = [[sum(TURNS[i : i + n]) / 100 for i in range(LAYERS - n + 1)] for n in range(1, 5)]
    return {"layers": layers, "angles": angles}


@dataclass
class World:
    """A model whose losses are what its `slopes` say of the survey's errors, and `extra` adds."""

    folder: Path
    slopes: dict[str, float] = field(default_factory=dict)
    extra: Callable[[Plan], float] = lambda _: 0.0
    config: dict[str, Any] = field(default_factory=lambda: CONFIG)
    standard_error: float | None = None
    tried: list[Plan] = field(default_factory=list)
    surveys: int = 0

    SLOPES: ClassVar = {"ffn": 1.0, "kv": 1.0, "depth": 5.0, "quantize gptq": 0.5, "quantize nearest": 1.0}

    def kl(self, plan: Plan) -> float:
        slopes = self.SLOPES | self.slopes
        errors = ErrorCurves(survey(), width=WIDTH, kv_heads=HEADS).of(plan)
        head = {None: 0.0, 8: 1e-5, 4: 1e-3}[plan.quantize.head_bits if plan.quantize else None]
        return sum(slopes[kind] * error for kind, error in errors.items()) + head + self.extra(plan)

    def trial(self, plan: Plan) -> Trial:
        self.tried.append(plan)
        return Trial(plan, self.kl(plan), self.standard_error)

    def survey(self) -> dict[str, Any]:
        self.surveys += 1
        return survey()

    def bytes(self, plan: Plan) -> int:
        return WeightBytes(self.folder, self.parsed)(plan)

    @property
    def parsed(self) -> mo.ModelConfig:
        return mo.ModelConfig.parse(json.dumps(self.config))

    def plan(
        self, *, kv_int8: bool = True, finalists: int = 3, costs: CostModel | None = None, **target: Any
    ) -> Planned:
        wanted = Target(**target)
        return choose(
            wanted,
            Space.of(self.parsed, wanted, kv_int8=kv_int8),
            self.parsed,
            source="model",
            weight_bytes=WeightBytes(self.folder, self.parsed),
            speed=DecodeSpeed(costs, self.config, self.parsed) if costs else None,
            survey=self.survey,
            trial=self.trial,
            finalists=finalists,
        )


def costs() -> CostModel:
    """Half the time for a weight in int8, a quarter in int4."""
    decode = {"fixed": 1e-4, "cached element": 1e-9}
    for name, share in {"floats": 1.0, "int8 by 32": 0.5, "int4 by 32": 0.25}.items():
        decode |= {f"layer, {name}": 1e-5, f"attention weight, {name}": share * 1e-9}
        decode |= {f"ffn weight, {name}": share * 1e-9}
    decode |= {"head weight, floats": 1e-9, "head weight, int8": 5e-10, "head weight, int4": 2.5e-10}
    formats = (Format(), Format(8, head="int8"), Format(4, head="int4"))
    return CostModel("model", 1, 64, formats, decode, decode, {}, 0.01)
