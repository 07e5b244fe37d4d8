# SPDX-License-Identifier: Apache-2.0
"""What is measured: each row's method, who takes part, and what each of them is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from peers.merge_models import Family

Ask = dict[str, Any]


@dataclass(frozen=True)
class Contestant:
    """`who` is the process that `name` runs in; in_bf16: rounded at each step, not once as modicum does."""

    name: str
    who: str
    ask: Callable[[Family], Ask]
    in_bf16: bool = False


@dataclass(frozen=True)
class Row:
    """modicum comes first. `random`: results differ by chance, and are not compared."""

    name: str
    title: str
    contestants: tuple[Contestant, ...]
    random: bool = False
    target: float | None = None
    """How many times faster than the first peer modicum was asked to be."""


def configuration(method: str, family: Family, each: Ask, shared: Ask, dtype: str) -> Ask:
    """In mergekit's words, which modicum reads too."""
    base = str(family.base)
    models: list[Ask] = [{"model": str(path), "parameters": each} for path in family.tuned]
    if method == "slerp":
        models = [{"model": base}, {"model": str(family.tuned[0])}]
    config = {"merge_method": method, "models": models, "dtype": dtype, "out_dtype": "bfloat16"}
    if shared:
        config["parameters"] = shared
    return config if method == "linear" else config | {"base_model": base}


def merge_row(
    method: str,
    each: Ask | None = None,
    shared: Ask | None = None,
    *,
    random: bool = False,
    target: float | None = None,
) -> Row:
    def ask(dtype: str) -> Callable[[Family], Ask]:
        return lambda family: {
            "call": "merge",
            "config": configuration(method, family, each or {}, shared or {}, dtype),
        }

    contestants = (
        Contestant("modicum", "modicum", ask("float32")),
        Contestant("mergekit", "mergekit", ask("float32")),
        Contestant("mergekit bf16", "mergekit", ask("bfloat16"), in_bf16=True),
    )
    return Row(method, f"{method}, directories", contestants, random, target)


def lora_row() -> Row:
    def ask(family: Family) -> Ask:
        return {"call": "lora", "model": str(family.base), "adapter": str(family.adapter)}

    contestants = (
        Contestant("modicum", "modicum", ask),
        Contestant("PEFT", "peft", lambda family: ask(family) | {"dtype": "float32"}),
        Contestant("PEFT bf16", "peft", lambda family: ask(family) | {"dtype": "auto"}, in_bf16=True),
    )
    return Row("lora", "LoRA folded, directories", contestants)


def arrays_row(method: str, *, random: bool = False) -> Row:
    """The linear layers of one block, in memory as float32."""

    def ask(family: Family) -> Ask:
        models = [str(path) for path in family.tuned]
        density = {} if method == "task_arithmetic" else {"density": DENSITY}
        return {
            "call": "arrays",
            "method": method,
            "base": str(family.base),
            "models": models,
            "weights": [WEIGHT] * len(models),
            **density,
        }

    contestants = (Contestant("modicum", "modicum", ask), Contestant("PEFT", "peft", ask))
    return Row(f"arrays-{method}", f"{method}, arrays of a layer", contestants, random)


WEIGHT = 0.5
DENSITY = 0.5
EACH: Ask = {"weight": WEIGHT}
SPARSE: Ask = {"weight": WEIGHT, "density": DENSITY}

ROWS = {
    row.name: row
    for row in (
        merge_row("linear", EACH),
        merge_row("slerp", shared={"t": 0.5}),
        merge_row("task_arithmetic", EACH, target=6.0),
        merge_row("ties", SPARSE, target=20.0),
        merge_row("dare_linear", SPARSE, random=True),
        merge_row("dare_ties", SPARSE, random=True),
        merge_row("breadcrumbs", {"weight": WEIGHT, "density": 0.9, "gamma": 0.01}),
        lora_row(),
        arrays_row("task_arithmetic"),
        arrays_row("magnitude_prune"),
        arrays_row("ties"),
        arrays_row("dare_linear", random=True),
        arrays_row("dare_ties", random=True),
    )
}
