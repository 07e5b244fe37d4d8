#!/usr/bin/env bash
# Writes python/modicum/_core.pyi, or the folder given, from the installed extension. Needs pybind11-stubgen 3.0.0.
set -euo pipefail
out=${1:-$(dirname "$0")/../python/modicum}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python -m pybind11_stubgen modicum._core -o "$work" --exit-code >/dev/null
cp "$work/modicum/_core.pyi" "$out/_core.pyi"
