# SPDX-License-Identifier: Apache-2.0
"""`modicum bench` and what it stands on: what is told, never how fast it is."""

from __future__ import annotations

import json
from pathlib import Path

import modicum as mo
import pytest
from modicum.cli import main
from tiny import write_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> mo.Model:
    return mo.load(write_tiny_model(tmp_path_factory.mktemp("tiny")), threads=2)


def test_the_machine_is_measured_for_the_threads_that_are_asked_for() -> None:
    limits = mo.machine_limits(threads=1)
    assert min(limits.read, limits.f32, limits.bf16, limits.int8) > 0
    assert mo.read_bandwidth(threads=1, size=1 << 20) > 0


def test_a_token_costs_every_matrix_once(tiny: mo.Model) -> None:
    layers = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32)
    assert tiny.multiply_adds_per_token == layers + 258 * 32
    assert tiny.weight_bytes_per_token == 4 * tiny.multiply_adds_per_token


def test_a_report_names_what_bounds_each_speed(tiny: mo.Model) -> None:
    report = mo.bench.run(tiny, repeat=1)
    assert [(s.what, s.tokens) for s in report.speeds] == [("prefill", 64), ("prefill", 512), ("decode", 24)]
    assert report.machine.threads == 2
    assert report.model is not None
    assert report.model.weight_bytes == tiny.weight_bytes_per_token
    for speed in report.speeds:
        assert speed.bound in ("memory bandwidth", "multiply-adds")
        assert speed.tokens_per_second > 0
        assert speed.share > 0
    decode = report.speeds[-1]
    assert decode.bytes_per_pass == tiny.weight_bytes_per_token + (64 + 12) * tiny.kv_bytes_per_token
    assert "decode reads" in str(report)
    assert "% of it reached" in str(report)


def test_prompts_stay_within_a_short_context(tmp_path: Path) -> None:
    model = mo.load(write_tiny_model(tmp_path / "short", context=40), threads=1)
    speeds = mo.bench.run(model, repeat=1).speeds
    assert [(s.what, s.tokens) for s in speeds] == [("prefill", 40), ("decode", 20)]


def test_without_a_model_the_machine_alone_is_told() -> None:
    report = mo.bench.run(threads=1)
    assert report.model is None
    assert report.speeds == []
    assert "op/s int8" in str(report)


def test_the_command_prints_the_report(tiny: mo.Model, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "--model", str(tiny.path), "--threads", "1", "--repeat", "1"]
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["schema"] == "modicum.bench/1"
    assert report["machine"]["threads"] == 1
    assert report["model"]["parameters"] == tiny.parameters
    assert main(arguments) == 0
    assert "bounded by" in capsys.readouterr().out
