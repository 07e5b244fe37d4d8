# SPDX-License-Identifier: Apache-2.0
"""Every example script runs, and says what it claims."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_year_of_a_knowledge_cache(demo: Path, capsys: pytest.CaptureFixture[str]):
    runpy.run_path(str(EXAMPLES / "knowledge.py"), run_name="__main__")
    out = capsys.readouterr().out
    assert "A  0.30 euros" in out and "A  0.40 euros" in out  # before and after the update
    assert "replaced ['fees.md'], added ['parking.md']" in out
    assert "The documents do not say." in out
    assert "difference 0.0" in out


def test_what_a_beam_search_can_be_asked_for(
    demo: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["beams.py"])
    runpy.run_path(str(EXAMPLES / "beams.py"), run_name="__main__")
    out = capsys.readouterr().out
    assert "'the reading room'" in out
    rules = out.split("Without “reading”, with “library”:")[1].split("Labels:")[0]
    assert "library" in rules and "reading" not in rules
    assert "[[1, 2, 0, 1, 2], [1, 2, 0, 2, 0]]" in out
    assert (tmp_path / "beams.svg").read_text("utf-8").startswith("<svg")
