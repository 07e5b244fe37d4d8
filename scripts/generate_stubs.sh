#!/usr/bin/env bash
# Writes python/modicum/_core.pyi, or one into the folder given, from the installed extension. Needs pybind11-stubgen.
set -euo pipefail
out=${1:-$(dirname "$0")/../python/modicum}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The exceptions call themselves modicum.Error and so on; their definition belongs into this stub all the same.
python - "$work" <<'PYTHON'
import sys

import modicum._core as core
from pybind11_stubgen import main

for value in vars(core).values():
    if isinstance(value, type) and issubclass(value, BaseException):
        value.__module__ = core.__name__
main([core.__name__, "--output-dir", sys.argv[1], "--exit-code"])
PYTHON
cp "$work/modicum/_core.pyi" "$out/_core.pyi"
