"""The LAPACK that solves run on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from modicum import _core

__all__ = ["open_solver"]


def open_solver() -> str:
    """Opens numpy's LAPACK where the system has none, and says which one serves."""
    for path in sorted((Path(np.__file__).parents[1] / "numpy.libs").glob("*openblas*")):
        _core.open_lapack(str(path))
    return _core.solver()
