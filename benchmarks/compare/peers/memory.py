# SPDX-License-Identifier: Apache-2.0
"""Memory of this process, without pages of files: weights that are mapped take none."""

from __future__ import annotations

import ctypes
import gc
import threading
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


class Watch:
    """Looks again and again while it is entered; `most` is the peak of private bytes.

    `peak` also counts files that were mapped and are no longer; this does not.
    """

    INTERVAL = 0.005  # seconds

    def __enter__(self) -> Watch:
        self.most = _sizes()["RssAnon"]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(self.INTERVAL):
            self.most = max(self.most, _sizes()["RssAnon"])
