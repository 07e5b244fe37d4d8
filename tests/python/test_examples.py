# SPDX-License-Identifier: Apache-2.0
"""Every example script runs, and says what it claims."""

from __future__ import annotations

import re
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


def test_a_model_is_shrunk_and_asked_what_is_left(
    demo: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.argv", ["retrofit.py", "--out", str(tmp_path / "smaller")])
    runpy.run_path(str(EXAMPLES / "retrofit.py"), run_name="__main__")
    out = capsys.readouterr().out
    assert "Plan: FFN 512, int8 gptq" in out and "KL from the source" in out
    results = re.findall(r"^  (.*): ([\d.]+) MB.*, (\d+) right$", out, re.MULTILINE)
    assert [made for made, _, _ in results] == [
        "the source",
        "FFN 512, int8 gptq",
        "int8 gptq",
        "1 KV head, FFN 512, int8 gptq",
    ]
    source, both, integers, too_far = [(float(size), int(right)) for _, size, right in results]
    assert both[0] < integers[0] < source[0]
    assert source[1] == 12 and integers[1] >= 11 and both[1] >= 8  # what is left is most of it …
    assert too_far[1] < both[1]  # … but not of everything
    assert (tmp_path / "smaller" / "retrofit.html").is_file()
