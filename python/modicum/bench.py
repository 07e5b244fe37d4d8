"""What this machine can do, what a model asks of it, and which resource bounds the model's speed."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modicum import _core
from modicum.model import Model, Progress

PROMPTS = (64, 512)
DECODE_PROMPT = 64
DECODE_TOKENS = 24


@dataclass(frozen=True)
class Machine:
    """Measured and told by the system.

    Attributes
    ----------
    read_bytes_per_second : of reading memory, 256 MiB at a time.
    operations_per_second : peaks of "f32", "bf16" and "int8" products; a multiply-add counts as two.
    """

    processor: str
    instruction_set: str
    threads: int
    memory_bytes: int
    memory_available_bytes: int
    read_bytes_per_second: float
    operations_per_second: dict[str, float]


@dataclass(frozen=True)
class ModelCost:
    """What one token asks for."""

    path: str
    parameters: int
    format: str
    weight_bytes: int
    kv_bytes_per_cached_token: int
    multiply_adds: int


@dataclass(frozen=True)
class Speed:
    """A measured rate beside what the machine's limits allow.

    Attributes
    ----------
    what : "prefill" or "decode".
    tokens : of the prompt, or written one by one.
    bytes_per_pass, operations_per_pass : of the prompt as a whole, or of one written token.
    bound : "memory bandwidth" or "multiply-adds", whichever takes longer at its limit.
    share : of the speed that this resource alone would allow.
    """

    what: str
    tokens: int
    tokens_per_second: float
    bytes_per_pass: float
    operations_per_pass: float
    bound: str
    share: float


@dataclass(frozen=True)
class BenchReport:
    machine: Machine
    model: ModelCost | None
    speeds: list[Speed]

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"schema": "modicum.bench/1", **asdict(self)}

    def __str__(self) -> str:
        lines = _machine_lines(self.machine)
        if self.model is not None:
            lines += _model_lines(self.model)
            lines += [_speed_line(speed) for speed in self.speeds]
        return "\n".join(lines)


def run(
    model: Model | None = None,
    *,
    threads: int | None = None,
    repeat: int = 3,
    progress: Progress | None = None,
) -> BenchReport:
    """Measures the machine and, where one is given, the model on it; medians of `repeat`.

    Parameters
    ----------
    threads : for the machine without a model; a model has its own number.
    """
    count = model.threads if model is not None else threads or 0
    machine = _machine(count)
    if model is None:
        return BenchReport(machine, None, [])
    cost = ModelCost(
        path=str(model.path),
        parameters=model.parameters,
        format=model.quantization or model.dtype,
        weight_bytes=model.weight_bytes_per_token,
        kv_bytes_per_cached_token=model.kv_bytes_per_token,
        multiply_adds=model.multiply_adds_per_token,
    )
    room = model.config.max_position_embeddings
    prompts = sorted({min(prompt, room) for prompt in PROMPTS})
    speeds = []
    for done, prompt in enumerate(prompts):
        if progress is not None:
            progress("prefill", done, len(prompts) + 1)
        speeds.append(_prefill(model, cost, machine, prompt, repeat))
    if room > 1:
        if progress is not None:
            progress("decode", len(prompts), len(prompts) + 1)
        speeds.append(_decode(model, cost, machine, repeat))
    return BenchReport(machine, cost, speeds)


def _machine(threads: int) -> Machine:
    limits = _core.machine_limits(threads=threads)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Machine(
        processor=_proc_field("/proc/cpuinfo", "model name") or platform.machine(),
        instruction_set=_core.active_isa(),
        threads=threads or len(os.sched_getaffinity(0)),
        memory_bytes=total,
        memory_available_bytes=int((_proc_field("/proc/meminfo", "MemAvailable") or "0").split()[0]) << 10,
        read_bytes_per_second=limits.read,
        operations_per_second={"f32": limits.f32, "bf16": limits.bf16, "int8": limits.int8},
    )


def _proc_field(path: str, name: str) -> str:
    """The value of the first line `name: value` of a file of the system, "" where there is none."""
    try:
        lines = Path(path).read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    found = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in found if key.strip() == name), "")


def _prefill(model: Model, cost: ModelCost, machine: Machine, tokens: int, repeat: int) -> Speed:
    ids = _random_ids(model, tokens)
    seconds = _median(lambda: model.tree().extend(ids).logits(), repeat)
    attention = _attention_operations(model, tokens * (tokens + 1) / 2)
    operations = 2.0 * cost.multiply_adds * tokens + attention
    return _speed("prefill", tokens, tokens, seconds, cost.weight_bytes, operations, machine, cost)


def _decode(model: Model, cost: ModelCost, machine: Machine, repeat: int) -> Speed:
    room = model.config.max_position_embeddings
    prompt = min(DECODE_PROMPT, room // 2)
    ids = _random_ids(model, min(DECODE_TOKENS, room - prompt))
    begin = model.tree().extend(_random_ids(model, prompt))
    begin.logits()

    def write() -> None:
        leaf = begin
        for token in ids:
            leaf = leaf.extend([token])
            leaf.logits()

    seconds = _median(write, repeat) / len(ids)
    cached = prompt + len(ids) / 2
    size = cost.weight_bytes + cached * cost.kv_bytes_per_cached_token
    operations = 2.0 * cost.multiply_adds + _attention_operations(model, cached)
    return _speed("decode", len(ids), 1, seconds, size, operations, machine, cost)


def _random_ids(model: Model, count: int) -> list[int]:
    ids: list[int] = np.random.default_rng(0).integers(0, model.config.vocab_size, count).tolist()
    return ids


def _attention_operations(model: Model, pairs: float) -> float:
    """Of `pairs` (query, key), each a dot product and a weighted sum, in every head of every layer."""
    config = model.config
    return 4.0 * pairs * config.num_hidden_layers * config.num_attention_heads * config.head_dim


def _median(work: Callable[[], object], repeat: int) -> float:
    """Seconds; a first run, which maps the weights, is not counted."""
    work()
    times = []
    for _ in range(repeat):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def _speed(
    what: str,
    tokens: int,
    tokens_per_pass: int,
    seconds: float,
    size: float,
    operations: float,
    machine: Machine,
    cost: ModelCost,
) -> Speed:
    # Read now, over as much as the weights are: bandwidth drifts on shared machines, and less may be cached.
    read = _core.read_bandwidth(threads=machine.threads, size=max(cost.weight_bytes, 1 << 20))
    kind = "int8" if cost.format.startswith("int") else "bf16" if cost.format == "bf16" else "f32"
    limits = {
        "memory bandwidth": size / read,
        "multiply-adds": operations / machine.operations_per_second[kind],
    }
    bound = max(limits, key=lambda name: limits[name])
    rate = tokens_per_pass / seconds
    return Speed(what, tokens, rate, size, operations, bound, limits[bound] / seconds)


def _machine_lines(machine: Machine) -> list[str]:
    peaks = ", ".join(f"{_si(rate)}op/s {kind}" for kind, rate in machine.operations_per_second.items())
    return [
        f"machine  {machine.processor}; {machine.instruction_set}, {machine.threads} threads; "
        f"{_si(machine.memory_bytes)}B of memory, {_si(machine.memory_available_bytes)}B available",
        f"         reads {_si(machine.read_bytes_per_second)}B/s; multiplies and adds at {peaks}",
    ]


def _model_lines(cost: ModelCost) -> list[str]:
    weights, cached = _si(cost.weight_bytes), _si(cost.kv_bytes_per_cached_token)
    return [
        f"model    {cost.path}: {_si(cost.parameters)} parameters, {cost.format}",
        f"         a token reads {weights}B of weights and {cached}B for each token before it, and takes "
        f"{_si(cost.multiply_adds)} multiply-adds",
    ]


def _speed_line(speed: Speed) -> str:
    if speed.what == "prefill":
        asked = f"takes {_si(speed.operations_per_pass)}op"
        name = f"prefill of {speed.tokens} tokens"
    else:
        asked = f"reads {_si(speed.bytes_per_pass)}B per token"
        name = "decode"
    return (
        f"{name} {asked}: {speed.tokens_per_second:.4g} tokens/s, bounded by {speed.bound}, "
        f"{100 * speed.share:.0f} % of it reached"
    )


def _si(value: float) -> str:
    """With three digits and a decimal prefix: 1234567 is "1.23 M"."""
    for prefix in ("", "k", "M", "G"):
        if value < 999.5:
            return f"{value:.3g} {prefix}"
        value /= 1000
    return f"{value:.3g} T"


__all__: Sequence[str] = ("BenchReport", "Machine", "ModelCost", "Speed", "run")
