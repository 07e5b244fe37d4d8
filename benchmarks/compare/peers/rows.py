# SPDX-License-Identifier: Apache-2.0
"""What is measured: the rows of the table, each with who takes part and what the machine would allow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from peers.engine import PROMPT, Setup
from peers.shapes import Shape
from peers.worker import Worker

DECODE = 64
TRUNK = 2048
QUESTION = 32
BRANCHES = 16

INT8 = ("modicum int8", "OpenVINO GenAI int8", "CTranslate2 int8", "llama.cpp q8_0")
INT4 = ("modicum int4", "llama.cpp q4_0 pure", "llama.cpp q4_0", "OpenVINO GenAI int4")
BF16 = ("modicum bf16", "transformers bf16", "llama.cpp bf16")


@dataclass(frozen=True)
class Row:
    """`measure(worker, setup, seed)` gives tokens/s or, where `seconds` is true, seconds."""

    name: str
    title: str
    contestants: tuple[str, ...]
    measure: Callable[[Worker, Setup, int], float]
    bound: str  # "read" or the type whose multiply-adds bound it
    flop: Callable[[Shape], float]
    """Of one measurement's unit: a token, or the whole where `seconds` is true."""
    targets: dict[str, float] = field(default_factory=dict)
    seconds: bool = False


def prefill(count: int) -> Callable[[Worker, Setup, int], float]:
    return lambda worker, setup, seed: count / worker.call("prefill", setup.tokens(count, seed))


def decode(worker: Worker, setup: Setup, seed: int) -> float:
    tokens = setup.tokens(PROMPT + DECODE, seed)
    return DECODE / worker.call("decode", tokens[:PROMPT], tokens[PROMPT:])


def question(worker: Worker, setup: Setup, seed: int) -> float:
    return worker.call("question", setup.tokens(QUESTION, seed))


def prefill_row(count: int, format: str, contestants: tuple[str, ...], targets: tuple[float, float]) -> Row:
    name = f"prefill-{count}" + ("" if format == "bf16" else f"-{format}")
    return Row(
        name,
        f"prefill {count}, {format}, tokens/s",
        contestants,
        prefill(count),
        format,
        lambda shape: shape.flop(0, count) / count,
        _targets(*targets),
    )


def decode_row(format: str, title: str, contestants: tuple[str, ...], target: float) -> Row:
    name = "decode" + ("" if format == "bf16" else f"-{format}")
    return Row(
        name,
        f"decode, {title}, tokens/s",
        contestants,
        decode,
        "read",
        lambda shape: shape.flop(PROMPT + DECODE // 2, 1),
        _targets(target, target),
    )


def _targets(qwen: float, smollm: float) -> dict[str, float]:
    return {"qwen2.5-0.5b": qwen, "smollm2-135m": smollm}


ROWS = {
    row.name: row
    for row in (
        prefill_row(512, "bf16", BF16, (1.2, 1.4)),
        prefill_row(2048, "bf16", BF16, (1.25, 1.4)),
        prefill_row(512, "int8", ("modicum int8 channel", *INT8), (1.15, 1.1)),
        prefill_row(2048, "int8", ("modicum int8 channel", *INT8), (1.15, 1.1)),
        decode_row("bf16", "bf16", BF16, 1.05),
        decode_row("int8", "int8 (groups of 32)", INT8, 1.15),
        decode_row("int4", "int4 (groups of 32, head included)", INT4, 1.1),
        Row(
            "question",
            f"{QUESTION} tokens over a cached trunk of {TRUNK}, bf16, seconds",
            BF16,
            question,
            "bf16",
            lambda shape: shape.flop(TRUNK, QUESTION),
            _targets(2.0, 2.0),
            seconds=True,
        ),
    )
}
