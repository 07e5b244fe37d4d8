# SPDX-License-Identifier: Apache-2.0
"""A measurement counts when the machine had little else to do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from peers.worker import machine_cpu_seconds

T = TypeVar("T")


class Watched(Protocol):
    foreign: float
    """CPU seconds that others took during the last measurement."""


SETTLE = 0.3  # seconds: idle threads of some OpenMP libraries spin for 0.2 s after their work
SHARE = 0.08  # of one processor that others may take
TICK = 0.02  # seconds: the counters' resolution, twice


def wait(patience: float) -> None:
    """Until all of the machine has been idle for SETTLE seconds, at most about `patience` seconds."""
    end = time.monotonic() + patience
    while True:
        before = machine_cpu_seconds()
        time.sleep(SETTLE)
        if machine_cpu_seconds() - before < SHARE * SETTLE + TICK or time.monotonic() > end:
            return


def undisturbed(measure: Callable[[int], T], worker: Watched, patience: float, tries: int) -> T:
    """The first of some measurements in which others took little, else the one in which they took least.

    `measure` is given the number of the try: an engine that keeps prompts (OpenVINO GenAI does) must not see
    the same tokens twice.
    """
    measured = []
    for number in range(tries):
        wait(patience)
        begin = time.monotonic()
        value = measure(number)
        seconds = time.monotonic() - begin
        measured.append((worker.foreign / seconds, value))
        if worker.foreign < SHARE * seconds + TICK:
            return value
    return min(measured, key=lambda pair: pair[0])[1]
