# SPDX-License-Identifier: Apache-2.0
"""The command line: what it prints, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from modicum.cli import main
from tiny import write_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "fees.md"
    path.write_text("Year card: 30 euros\n")
    return path


def run_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    assert main([str(a) for a in arguments] + ["--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return json.loads(out)


def test_info(tiny: Path, capsys: pytest.CaptureFixture[str]):
    facts = run_json(capsys, "info", tiny)
    assert facts["model_type"] == "llama"
    assert facts["vocabulary"] == 258
    assert facts["kv_bytes_per_token"] == 2 * 2 * 16 * 4
    assert main(["info", str(tiny)]) == 0
    assert "258" in capsys.readouterr().out


def test_generate_is_the_same_greedy_sampled_by_seed_and_as_one_beam(
    tiny: Path, capsys: pytest.CaptureFixture[str]
):
    base = ["generate", "--model", tiny, "--prompt", "Once", "--max-new-tokens", 8]
    greedy = run_json(capsys, *base)["results"][0]
    assert run_json(capsys, *base)["results"][0] == greedy
    sampled = [
        run_json(capsys, *base, "--temperature", 2, "--seed", s)["results"][0]["ids"] for s in (1, 1, 2)
    ]
    assert sampled[0] == sampled[1] != sampled[2]
    beams = run_json(capsys, *base, "--beams", 4, "--num-return", 3)["results"]
    assert len(beams) == 3
    assert [b["score"] for b in beams] == sorted((b["score"] for b in beams), reverse=True)
    assert main([str(a) for a in base]) == 0
    assert capsys.readouterr().out.strip() == greedy["text"].strip()


def test_cag_build_ask_inspect(
    tiny: Path, document: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    cache = tmp_path / "a.kv"
    built = run_json(capsys, "cag", "build", "--model", tiny, "--out", cache, document)
    assert [d["name"] for d in built["documents"]] == ["fees.md"]
    answer = run_json(
        capsys, "cag", "ask", "--model", tiny, "--cache", cache, "How much?", "--max-new-tokens", 5
    )
    assert answer["cost"]["cached_tokens"] == built["tokens"]
    assert answer["cost"]["new_tokens"] <= 5
    assert run_json(capsys, "cag", "inspect", cache)["tokens"] == built["tokens"]


def test_an_error_is_one_line_and_exit_code_1(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for arguments in (
        ["info", tmp_path / "missing"],
        ["cag", "inspect", tiny / "config.json"],
        ["cag", "build", "--model", tiny, "--out", tmp_path / "a.kv", tmp_path],
        ["generate", "--model", tiny, "--prompt", "a", "--max-new-tokens", 5000],
    ):
        assert main([str(a) for a in arguments]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("modicum: [") and err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["generate"], ["cag"], ["info"], ["cag", "ask", "--beams", "x"]]
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]):
    result = subprocess.run(
        [sys.executable, "-m", "modicum", *arguments], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "usage" in result.stderr


@pytest.mark.parametrize(
    "command",
    [["info"], ["generate"], ["quantize"], ["cag", "build"], ["cag", "ask"], ["cag", "inspect"], ["demo"]],
)
def test_every_command_has_help_and_json(command: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as exit_code:
        main([*command, "--help"])
    assert exit_code.value.code == 0
    assert "--json" in capsys.readouterr().out


def test_demo_answers_the_questions_over_the_handbook(demo: Path, capsys: pytest.CaptureFixture[str]):
    report = run_json(capsys, "demo")
    right = [a for a in report["answers"] if a["text"] == a["expected"]]
    assert len(right) >= 0.8 * len(report["answers"])
    assert all(a["citations"] for a in right)
    assert main(["demo"]) == 0
    assert "from the cache" in capsys.readouterr().out
