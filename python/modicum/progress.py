"""Progress of long work: a bar on a terminal, plain lines elsewhere; both say how long it still takes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tqdm import tqdm  # type: ignore[import-untyped]

from modicum.model import Progress

_SECONDS_BETWEEN_LINES = 5.0


@contextmanager
def reporter(
    label: str, *, unit: str = "tokens", stages: Mapping[str, str] | None = None, quiet: bool = False
) -> Iterator[Progress | None]:
    """A progress callback that draws to standard error while the block runs; None where `quiet`.

    Parameters
    ----------
    stages : a label for each stage that has one of its own; `label` is that of all others.
    """
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with tqdm(desc=label, unit=f" {unit}", unit_scale=unit == "bytes", leave=False) as bar:
            yield _on_bar(bar, label, stages or {})
    else:
        yield _plain_lines(label, unit, stages or {})


def _on_bar(bar: tqdm, label: str, stages: Mapping[str, str]) -> Progress:
    last = ""

    def on_progress(stage: str, done: int, total: int) -> None:
        nonlocal last
        name = stages.get(stage, label)
        if (last and name != last) or _begins_anew(done, bar.n):
            bar.reset()
            bar.set_description(name, refresh=False)
        last, bar.total = name, total
        bar.update(done - bar.n)

    return on_progress


def _plain_lines(label: str, unit: str, stages: Mapping[str, str]) -> Progress:
    told = began = time.monotonic()
    last, reached = "", 0

    def on_progress(stage: str, done: int, total: int) -> None:
        nonlocal told, began, last, reached
        now, name = time.monotonic(), stages.get(stage, label)
        if name != last or _begins_anew(done, reached):
            began, last = now, name
        reached = done
        if now - told >= _SECONDS_BETWEEN_LINES:
            left = f", about {duration(_left(now - began, done, total))} left" if done else ""
            print(f"{name}: {done} of {total} {unit}{left}", file=sys.stderr, flush=True)
            told = now

    return on_progress


def _begins_anew(done: int, before: int) -> bool:
    """Whether this is other work, with a pace of its own, and no small step back."""
    return 2 * done < before


def _left(seconds: float, done: int, total: int) -> float:
    """Whole seconds, as nobody wants to read of milliseconds."""
    return max(1.0, seconds * (total - done) / done)


def duration(seconds: float) -> str:
    """As people say it: "40 ms", "40 s", "12 min", "1 h 05 min"."""
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
