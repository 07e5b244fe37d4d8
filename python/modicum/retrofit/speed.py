"""How fast models are, measured beside each other; also shapes of models that do not exist yet."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modicum import _core
from modicum._core import Cancelled, InvalidArgument
from modicum.model import Model, Progress
from modicum.retrofit.shapes import Shape, temporary_checkpoint

__all__ = ["Rate", "Ratio", "Speed", "SpeedChange", "measure", "measure_shapes"]

PROMPT_TOKENS = 128
NEW_TOKENS = 32
ROUNDS = 7
_SECONDS = 0.05  # of one timing at least: a tiny model is run over and over


@dataclass(frozen=True)
class Ratio:
    """The median of rounds, and their quartiles."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"


@dataclass(frozen=True)
class Rate:
    """Seconds a token, by round. Rounds of models that were measured together belong together."""

    seconds: tuple[float, ...]

    @property
    def tokens_per_second(self) -> Ratio:
        """The median, and the quartiles: half of the rounds were between them."""
        return _ratio([1 / s for s in self.seconds])

    def speed_up_over(self, other: Rate) -> Ratio:
        """How many times as fast as `other`, round by round: what slows both down for a while cancels.

        Raises
        ------
        InvalidArgument
            Where they do not have the same rounds.
        """
        if len(self.seconds) != len(other.seconds):
            raise InvalidArgument(
                f"[speed] rounds: expected as many of both, got {len(self.seconds)} and {len(other.seconds)}"
            )
        return _ratio([theirs / ours for ours, theirs in zip(self.seconds, other.seconds, strict=True)])


@dataclass(frozen=True)
class Speed:
    """What a model reads and writes in a second.

    Attributes
    ----------
    name : of its directory.
    prompt_tokens : of the prompt that `prefill` reads, and that `decode` writes after.
    new_tokens : that `decode` writes one by one, the likeliest each time.
    """

    name: str
    threads: int
    prompt_tokens: int
    new_tokens: int
    prefill: Rate
    decode: Rate

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it; rates are [median, lower quartile, upper quartile] of tokens a second."""
        facts: dict[str, Any] = {
            name: getattr(self, name) for name in ("name", "threads", "prompt_tokens", "new_tokens")
        }
        for name in ("prefill", "decode"):
            rate = getattr(self, name).tokens_per_second
            facts[f"{name}_tokens_per_second"] = [rate.value, rate.low, rate.high]
        facts["rounds"] = len(self.decode.seconds)
        return facts

    def __str__(self) -> str:
        return (
            f"{self.name}: reads {self.prefill.tokens_per_second} and writes "
            f"{self.decode.tokens_per_second} tokens/s with {self.threads} threads"
        )


@dataclass(frozen=True)
class SpeedChange:
    """A model and what it would become, measured in the same rounds."""

    source: Speed
    shape: Speed

    @property
    def decode(self) -> Ratio:
        """How many times as fast the shape writes."""
        return self.shape.decode.speed_up_over(self.source.decode)

    @property
    def prefill(self) -> Ratio:
        """How many times as fast the shape reads."""
        return self.shape.prefill.speed_up_over(self.source.prefill)


def measure(
    models: Sequence[Model | str | Path],
    *,
    rounds: int = ROUNDS,
    prompt_tokens: int = PROMPT_TOKENS,
    new_tokens: int = NEW_TOKENS,
    threads: int | None = None,
    progress: Progress | None = None,
) -> list[Speed]:
    """Measures models in turns, so that what else the machine does slows all of them alike.

    Each round reads a prompt of random tokens and writes after it with every model, in an order that turns
    round from one round to the next; a first run, which maps the weights, does not count. Models with a short
    context get a shorter prompt, the same for all.

    Parameters
    ----------
    models : open, or directories, which are opened with `threads`.
    progress : called with (stage, rounds done, rounds in all); returning False stops.

    Raises
    ------
    InvalidArgument
        For no model, fewer than one round or token, and contexts of fewer than three tokens.
    Cancelled
    """
    for name, count in {"rounds": rounds, "prompt_tokens": prompt_tokens, "new_tokens": new_tokens}.items():
        if count < 1:
            raise InvalidArgument(f"[speed] {name}: expected at least 1, got {count}")
    opened = [model if isinstance(model, Model) else Model(model, threads=threads) for model in models]
    if not opened:
        raise InvalidArgument("[speed] models: expected at least one, got none")
    room = min(model.config.max_position_embeddings for model in opened)
    if room < 3:
        raise InvalidArgument(f"[speed] context: expected at least 3 tokens, got {room}")
    prompt = min(prompt_tokens, room // 2)
    # The prompt's last token is read again, as the first step needs its logits.
    runs = [_Run(model, prompt, min(new_tokens, room - prompt - 1)) for model in opened]
    for done in range(rounds):
        tell(progress, "speed", done, rounds)
        for run in runs if done % 2 == 0 else reversed(runs):
            run.round()
    tell(progress, "speed", rounds, rounds)
    return [run.speed() for run in runs]


def measure_shapes(
    source: Model | str | Path,
    shapes: Sequence[Shape],
    *,
    rounds: int = ROUNDS,
    prompt_tokens: int = PROMPT_TOKENS,
    new_tokens: int = NEW_TOKENS,
    threads: int | None = None,
    scratch: Path | None = None,
    progress: Progress | None = None,
) -> list[SpeedChange]:
    """How fast models of `shapes` will be, each beside `source`; they need not exist yet.

    For each shape in turn a checkpoint of random weights is written, measured and removed: what a token costs
    does not depend on what the weights are. It takes the disk space of one such checkpoint, in floats and
    once more in integers where the format has them.

    Parameters
    ----------
    scratch : where checkpoints are made; None means the system's folder for temporary files.
    progress : called with (stage, shapes done, shapes in all); returning False stops.

    Raises
    ------
    InvalidArgument, FormatError, Unsupported
        For a shape that the engine does not run, or that does not fit its format.
    IoError, Cancelled
    """
    model = source if isinstance(source, Model) else Model(source, threads=threads)
    found = []
    for done, shape in enumerate(shapes):

        def go_on(*_: object, at: int = done) -> None:
            tell(progress, "shapes", at, len(shapes))

        go_on()
        with temporary_checkpoint(shape, scratch=scratch, progress=go_on) as folder:
            both = measure(
                [model, Model(folder, threads=model.threads)],
                rounds=rounds,
                prompt_tokens=prompt_tokens,
                new_tokens=new_tokens,
                progress=go_on,
            )
        found.append(SpeedChange(*both))
    tell(progress, "shapes", len(shapes), len(shapes))
    return found


def tell(progress: Progress | None, stage: str, done: int, total: int) -> None:
    """Reports; raises Cancelled where the caller asks to stop."""
    if progress is not None and progress(stage, done, total) is False:
        raise Cancelled(f"[{stage}] stopped by the caller")


class _Run:
    """One model that is measured."""

    def __init__(self, model: Model, prompt_tokens: int, new_tokens: int) -> None:
        self.model = model
        self.new_tokens = new_tokens
        ids = np.random.default_rng(0).integers(0, model.config.vocab_size, prompt_tokens)
        self.prompt: list[int] = ids.tolist()
        self.leaf = self._read()
        self._write()
        self.repeat_read = _repeats(self._read)
        self.repeat_write = _repeats(self._write)
        self.read_seconds: list[float] = []
        self.write_seconds: list[float] = []

    def _read(self) -> _core.Branch:
        leaf = self.model.tree().extend(self.prompt)
        leaf.logits()
        return leaf

    def _write(self) -> None:
        _core.generate(
            self.leaf,
            self.prompt[-1:],
            max_new_tokens=self.new_tokens,
            min_new_tokens=0,
            stop_ids=[],
            stop=[],
            temperature=0.0,
            top_k=0,
            top_p=1.0,
            min_p=0.0,
            repetition_penalty=1.0,
            seed=0,
            with_text=False,
            callback=None,
        )

    def round(self) -> None:
        reading = _seconds(self._read, self.repeat_read)
        self.read_seconds.append(reading / len(self.prompt))
        self.write_seconds.append(_seconds(self._write, self.repeat_write) / self.new_tokens)

    def speed(self) -> Speed:
        return Speed(
            name=self.model.path.name,
            threads=self.model.threads,
            prompt_tokens=len(self.prompt),
            new_tokens=self.new_tokens,
            prefill=Rate(tuple(self.read_seconds)),
            decode=Rate(tuple(self.write_seconds)),
        )


def _seconds(work: Callable[[], object], repeat: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeat):
        work()
    return (time.perf_counter() - begin) / repeat


def _repeats(work: Callable[[], object]) -> int:
    return min(1000, 1 + int(_SECONDS / max(_seconds(work, 1), 1e-6)))


def _ratio(values: Sequence[float]) -> Ratio:
    if len(values) == 1:
        return Ratio(values[0], values[0], values[0])
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Ratio(middle, low, high)
