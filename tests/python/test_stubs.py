# SPDX-License-Identifier: Apache-2.0
"""The committed stub of the extension is what pybind11-stubgen writes for the one that is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_committed_stub_is_fresh(tmp_path: Path) -> None:
    pytest.importorskip("pybind11_stubgen")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script = ROOT / "scripts" / "generate_stubs.sh"
    subprocess.run(["bash", script, tmp_path], check=True, env={**os.environ, "PATH": path})
    fresh = (tmp_path / "_core.pyi").read_text()
    committed = (ROOT / "python" / "modicum" / "_core.pyi").read_text()
    assert fresh == committed, "run scripts/generate_stubs.sh and commit what it writes"
