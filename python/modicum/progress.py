"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm  # type: ignore[import-untyped]

from modicum.model import Progress

_SECONDS_BETWEEN_LINES = 5.0


@contextmanager
def reporter(label: str, *, unit: str = "tokens", quiet: bool = False) -> Iterator[Progress | None]:
    """A progress callback that draws to standard error while the block runs; None where `quiet`."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with tqdm(desc=label, unit=f" {unit}", unit_scale=unit == "bytes", leave=False) as bar:
            yield lambda _stage, done, total: _advance(bar, done, total)
    else:
        yield _plain_lines(label, unit)


def _advance(bar: tqdm, done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)


def _plain_lines(label: str, unit: str) -> Progress:
    last = time.monotonic()

    def on_progress(_stage: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES:
            print(f"{label}: {done} of {total} {unit}", file=sys.stderr, flush=True)
            last = now

    return on_progress
