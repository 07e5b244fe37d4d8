# SPDX-License-Identifier: Apache-2.0
"""Checks that no `#include` in include/ or src/ points up: a folder includes itself and what it stands on.

Prints each violation and exits with 1 where there is one: `python3 tests/layers.py [ROOT]`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

# What each folder stands on directly; it may include that and all below it. A new folder is one new line.
STANDS_ON: dict[str, tuple[str, ...]] = {
    "base": (),
    "tensor": ("base",),
    "linalg": ("tensor",),
    "io": ("tensor",),
    "text": ("tensor",),
    "ops": ("tensor",),
    "cpu": ("tensor",),
    "kv": ("io", "text", "ops"),
    "model": ("kv",),
    "decode": ("model",),
    "search": ("decode",),
    "cag": ("decode",),
    "statistics": ("model", "linalg"),
    "retrofit": ("statistics",),
    "tune": ("statistics",),
    "python": ("search", "cag", "retrofit", "tune"),
}
# The kernels are the inside of ops: each sees the other.
STANDS_ON["ops"] += ("cpu",)
STANDS_ON["cpu"] += ("ops",)

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^">]+)[">]')


def below(folder: str) -> set[str]:
    """`folder` and everything that it stands on, directly or not."""
    found: set[str] = set()
    waiting = [folder]
    while waiting:
        folder = waiting.pop()
        if folder not in found:
            found.add(folder)
            waiting += STANDS_ON[folder]
    return found


def folder_of(path: Path, root: Path) -> str | None:
    """The folder of a header or source; None for a file of another project, and for the umbrella header."""
    for base in (root / "include" / "modicum", root / "src"):
        if path.is_relative_to(base):
            parts = path.relative_to(base).parts
            return parts[0] if len(parts) > 1 else None
    return None


def includes(file: Path, root: Path) -> Iterator[tuple[int, Path]]:
    """Line number and path of each include that may be modicum's."""
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if match := INCLUDE.match(line):
            angled, name = match[1] == "<", match[2]
            yield number, (root / "include" / name if angled else (file.parent / name).resolve())


def violations(root: Path) -> list[str]:
    root = root.resolve()
    found = []
    sources = [p for tree in ("include", "src") for p in (root / tree).rglob("*") if p.is_file()]
    for file in sorted(p for p in sources if p.suffix in {".hpp", ".cpp", ".inc", ".cu", ".cuh"}):
        folder = folder_of(file, root)
        if folder is None:
            continue
        where = file.relative_to(root)
        if folder not in STANDS_ON:
            found.append(f"{where}: folder '{folder}' has no line in STANDS_ON (tests/layers.py)")
            continue
        for number, included in includes(file, root):
            other = folder_of(included, root)
            if included.name == "modicum.hpp" and folder != "python":
                found.append(f"{where}:{number}: includes modicum.hpp, which is for applications")
            elif other is not None and other not in below(folder):
                found.append(f"{where}:{number}: {folder} includes {other}, which it does not stand on")
    return found


if __name__ == "__main__":
    problems = violations(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1])
    print("\n".join(problems) or "includes run one way")
    sys.exit(1 if problems else 0)
