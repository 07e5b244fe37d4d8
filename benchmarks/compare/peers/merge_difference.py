# SPDX-License-Identifier: Apache-2.0
"""How far two directories' weights are from each other, a piece at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PIECE = 1 << 22  # elements


@dataclass
class Difference:
    """`absolute` and `relative` (to the larger of both) are the largest of any weight."""

    elements: int = 0
    identical: int = 0
    absolute: float = 0.0
    relative: float = 0.0

    @property
    def share(self) -> float:
        """Of identical weights."""
        return self.identical / self.elements if self.elements else 1.0

    def add(self, a: Any, b: Any) -> None:
        import torch

        self.elements += a.numel()
        same = a == b
        equal = int(same.sum())
        self.identical += equal
        if equal == a.numel():
            return
        a, b = a[~same].double(), b[~same].double()
        apart = (a - b).abs()
        self.absolute = max(self.absolute, float(apart.max()))
        self.relative = max(self.relative, float((apart / torch.maximum(a.abs(), b.abs())).max()))


def difference(first: Path, second: Path) -> Difference:
    """Raises ValueError where they do not hold tensors of the same names, shapes and types."""
    found = Difference()
    with ExitStack() as stack:
        a, b = _tensors(first, stack), _tensors(second, stack)
        if a.keys() != b.keys():
            raise ValueError(f"only one of them holds {min(a.keys() ^ b.keys())}")
        for name in sorted(a):
            left, right = a[name].get_slice(name), b[name].get_slice(name)
            kinds = [(one.get_shape(), one.get_dtype()) for one in (left, right)]
            if kinds[0] != kinds[1]:
                raise ValueError(f"{name}: {kinds[0]} and {kinds[1]}")
            for piece in _pieces(kinds[0][0]):
                found.add(left[piece], right[piece])
    return found


def _tensors(folder: Path, stack: ExitStack) -> dict[str, Any]:
    from safetensors import safe_open

    files = [stack.enter_context(safe_open(file, "pt")) for file in sorted(folder.glob("*.safetensors"))]
    return {name: file for file in files for name in file.keys()}  # noqa: SIM118


def _pieces(shape: list[int]) -> Iterator[slice]:
    columns = 1
    for extent in shape[1:]:
        columns *= extent
    rows = max(1, PIECE // max(1, columns))
    for row in range(0, shape[0], rows):
        yield slice(row, row + rows)
