# SPDX-License-Identifier: Apache-2.0
"""Memory of this process, without pages of files: weights that are mapped take none."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

STATUS = Path("/proc/self/status")


def _sizes() -> dict[str, int]:
    lines = (line.split() for line in STATUS.read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) << 10 for words in lines if words[-1] == "kB"}


def release() -> None:
    """Gives what nobody uses back to the system: an allocator's reserve would count for the next call."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def held() -> int:
    release()
    return _sizes()["RssAnon"]


def forget_peak() -> None:
    release()
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """The most since `forget_peak`. The system keeps the peak of all pages; those of files only ever grow."""
    sizes = _sizes()
    return sizes["VmHWM"] - sizes["RssFile"] - sizes["RssShmem"]
