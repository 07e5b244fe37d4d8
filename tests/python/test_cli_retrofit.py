# SPDX-License-Identifier: Apache-2.0
"""`modicum retrofit` and `modicum compare`: what they write, print and refuse."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import modicum as mo
import numpy as np
import pytest
from modicum import cli_retrofit, progress
from modicum.cli import main
from modicum.retrofit.candidates import Candidate


@pytest.fixture(scope="module")
def texts(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some thousands of tokens: the handbook's lines in many orders."""
    folder = tmp_path_factory.mktemp("texts")
    pages = [page.read_text("utf-8") for page in sorted((demo / "handbook").glob("*.md"))]
    lines = [line for page in pages for line in page.splitlines() if line]
    rng = np.random.default_rng(0)
    for i in range(8):
        (folder / f"{i}.txt").write_text("\n".join(rng.permutation(lines)), "utf-8")
    return folder


@pytest.fixture(scope="module")
def shrunk(demo: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A directory that the command wrote, and what it printed."""
    out = tmp_path_factory.mktemp("out") / "small"
    text = [*small_text(texts), "--held-out-text", demo / "handbook"]
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr("builtins.print", lambda *parts, **_: said.extend(map(str, parts)))
        assert main(words("retrofit", demo / "model", out, "--kv-heads", 1, "--bits", 8, *text)) == 0
    return out, "\n".join(said)


def words(*parts: object) -> list[str]:
    return [str(part) for part in parts]


def small_text(texts: Path) -> Sequence[object]:
    return ["--calibration", texts, "--tokens", 2048, "--length", 64]


def refused(capsys: pytest.CaptureFixture[str], *parts: object) -> str:
    """The one line on standard error."""
    assert main(words(*parts)) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("modicum: [") and err.count("\n") == 1
    return err


def test_a_shrunk_model_loads_and_answers_with_its_report_beside_it(
    demo: Path, shrunk: tuple[Path, str]
) -> None:
    out, said = shrunk
    before, after = mo.load(demo / "model"), mo.load(out)
    assert after.config.num_key_value_heads == 1 < before.config.num_key_value_heads
    assert after.weight_bytes < before.weight_bytes and after.quantization
    report = mo.retrofit.Report.load(out / "retrofit.json")
    assert report.plan["kv"]["kv_heads"] == 1 and report.plan["quantize"]["bits"] == 8
    assert report.second_name == str(demo / "handbook") and report.second is not None
    assert str(report) in said and "retrofit.html" in said
    assert (out / "retrofit.html").read_text("utf-8").lower().startswith("<!doctype html>")


def test_json_is_one_object_and_quiet_prints_nothing(
    demo: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drop = ["--drop-layers", "4:2", *small_text(texts)]
    assert main(words("retrofit", demo / "model", tmp_path / "a", *drop, "--json")) == 0
    out, err = capsys.readouterr()
    assert err == "" and json.loads(out)["report"]["plan"]["depth"]["count"] == 2
    assert main(words("retrofit", demo / "model", tmp_path / "b", *drop, "--quiet")) == 0
    assert capsys.readouterr() == ("", "")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


def test_a_plan_from_a_file_does_what_options_do(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = mo.retrofit.Plan(quantize=mo.retrofit.Quantize(4, rounding="nearest"))
    (tmp_path / "plan.json").write_text(plan.to_json())
    options = ["--bits", 4, "--rounding", "nearest"]
    assert main(words("retrofit", demo / "model", tmp_path / "a", "--plan", tmp_path / "plan.json")) == 0
    assert main(words("retrofit", demo / "model", tmp_path / "b", *options)) == 0
    assert "what was lost was not measured" in capsys.readouterr().out
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("options", "plan"),
    [
        (["--ffn", "512"], mo.retrofit.Plan(ffn=mo.retrofit.Ffn(512))),
        (["--drop-layers", "2"], mo.retrofit.Plan(depth=mo.retrofit.Depth(2, 1))),
        (
            ["--window", "64", "--window-layers", "0,2"],
            mo.retrofit.Plan(window=mo.retrofit.Window(64, (0, 2))),
        ),
        (
            ["--bits", "8", "--group", "channel", "--scaling", "smooth", "--head", "int8"],
            mo.retrofit.Plan(
                quantize=mo.retrofit.Quantize(bits=8, group=0, scaling="smooth", head_bits=8),
            ),
        ),
        (
            ["--bits", "4", "--group", "64", "--rounding", "nearest", "--head", "keep"],
            mo.retrofit.Plan(quantize=mo.retrofit.Quantize(bits=4, group=64, rounding="nearest")),
        ),
    ],
)
def test_options_make_a_plan(
    options: list[str], plan: mo.retrofit.Plan, demo: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = words("retrofit", demo / "model", *options, *small_text(texts), "--dry-run", "--json")
    assert main(command) == 0
    assert mo.retrofit.Plan.from_dict(json.loads(capsys.readouterr().out)["plan"]) == plan


def test_a_dry_run_tells_sizes_and_writes_nothing(
    demo: Path, texts: Path, shrunk: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "none"
    command = words("retrofit", demo / "model", out, "--kv-heads", 1, "--bits", 8, *small_text(texts))
    assert main([*command, "--dry-run", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["estimate"]
    assert facts["kv_bytes_per_token_after"] * 2 == facts["kv_bytes_per_token_before"]
    report = mo.retrofit.Report.load(shrunk[0] / "retrofit.json")
    assert facts["out_bytes"] == pytest.approx(report.bytes_after, rel=0.01)
    assert main([*command, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "1 KV head, int8 gptq" in said and "3072 → 1536 bytes" in said and "Nothing was written." in said
    assert not out.exists()


def test_a_dry_run_measures_the_speed_to_expect(
    demo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []

    def measured(source: str, wanted: list[mo.retrofit.Shape], **_: object) -> list[mo.retrofit.SpeedChange]:
        shapes.extend(wanted)

        def speed(seconds: float) -> mo.retrofit.Speed:
            rate = mo.retrofit.Rate((seconds,))
            return mo.retrofit.Speed("a", 1, 8, 8, prefill=rate, decode=rate)

        return [mo.retrofit.SpeedChange(speed(0.3), speed(0.1))]

    monkeypatch.setattr(mo.retrofit, "measure_shapes", measured)
    plan = ["--drop-layers", "1:2", "--bits", 8, "--rounding", "nearest", "--head", "int4"]
    demo_words = words("retrofit", demo / "model", *plan, "--dry-run", "--speed")
    drop = mo.retrofit.Depth(1, 2, refit="none")
    monkeypatch.setattr(mo.retrofit, "Depth", lambda *_: drop)
    assert main(demo_words) == 0
    assert "writes      3.00 times as fast" in capsys.readouterr().out
    assert shapes[0].config["num_hidden_layers"] == mo.load(demo / "model").config.num_hidden_layers - 2
    assert shapes[0].format == mo.retrofit.Format(8, 32, "int4")


def test_the_shape_of_a_plan_runs_as_what_a_run_writes(demo: Path, tmp_path: Path) -> None:
    plan = mo.retrofit.Plan(kv=mo.retrofit.Kv(1), ffn=mo.retrofit.Ffn(512), depth=mo.retrofit.Depth(0, 2))
    shape = cli_retrofit.shape_of(demo / "model", plan)
    config = mo.load(mo.retrofit.write_random(shape.config, tmp_path / "a")).config
    assert (config.num_key_value_heads, config.intermediate_size) == (1, 512)
    assert config.num_hidden_layers == mo.load(demo / "model").config.num_hidden_layers - 2


def test_a_target_prints_what_was_found_and_carries_it_out(
    demo: Path,
    texts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []

    def found(model: mo.Model, **options: Any) -> mo.retrofit.Planned:
        asked.append(options)
        plan = mo.retrofit.Plan(quantize=mo.retrofit.Quantize(8))
        chosen = mo.retrofit.Considered(Candidate(plan), 5_000_000, 3072, None, 0.01, verdict="chosen")
        return mo.retrofit.Planned(
            source=str(model.path),
            target=options["target"],
            plan=plan,
            kv_int8=False,
            frontier=[chosen.point()],
            advice="Do not retrofit.",
            predicted={"bytes": 5_000_000},
            chosen=chosen,
            considered=[chosen],
        )

    monkeypatch.setattr(mo.retrofit, "plan", found)
    target = ["--target", "bytes=6MB,max_kl=0.1", *small_text(texts)]
    assert main(words("retrofit", demo / "model", tmp_path / "a", *target)) == 0
    assert asked[0]["target"] == mo.retrofit.Target(bytes=6_000_000, max_kl=0.1)
    assert asked[0]["calibration"].length == 64
    said = capsys.readouterr().out
    assert said.index("Do not retrofit.") < said.index("KL from the source")
    report = mo.retrofit.Report.load(tmp_path / "a" / "retrofit.json")
    assert report.plan["quantize"]["bits"] == 8 and report.frontier[0].chosen
    page = (tmp_path / "a" / "retrofit.html").read_text("utf-8")
    assert "nothing smaller loses less" in page  # the picture of what was weighed
    assert main(words("retrofit", demo / "model", *target, "--dry-run", "--json")) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["planned"]["advice"] == "Do not retrofit." and facts["plan"]["quantize"]["bits"] == 8
    assert facts["estimate"]["out_bytes"] == report.bytes_after


def test_a_target_that_is_met_already_writes_nothing(
    demo: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = ["--target", "bytes=1GB", *small_text(texts)]
    assert main(words("retrofit", demo / "model", tmp_path / "a", *target)) == 0
    said = capsys.readouterr().out
    assert "There is nothing to do" in said and "Nothing was written." in said
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "expected one of --plan, --target, or edits such as --ffn, got none"),
        (["--ffn", "512", "--plan", "a.json"], "got --plan, --ffn"),
        (["--group", "64"], "--group: expected --bits with it"),
        (["--window", "64"], "--window: expected --window-layers with it"),
        (["--target", "bytes=1MB"], "--target: expected text to measure on"),
        (["--ffn", "512"], "calibration: expected text to fit “FFN 512” on"),
        (["--plan", "none.json"], "none.json"),
        (["--bits", "4", "--calibration", "none.txt"], "none.txt"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(
    options: list[str], said: str, demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert said in refused(capsys, "retrofit", demo / "model", out, *options, "--quiet")
    assert not out.exists()


def test_out_is_needed_and_must_not_be_taken(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = ["--bits", 8, "--rounding", "nearest"]
    assert "OUT: expected a new directory" in refused(capsys, "retrofit", demo / "model", *plain)
    (tmp_path / "kept.txt").write_text("mine")
    assert str(tmp_path) in refused(capsys, "retrofit", demo / "model", tmp_path, *plain)
    assert (tmp_path / "kept.txt").read_text() == "mine"


@pytest.mark.parametrize("options", [["--drop-layers", "a"], ["--window-layers", "1,b"], ["--bits", "5"]])
def test_wrong_words_are_wrong_usage(
    options: list[str], demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words("retrofit", demo / "model", *options, "--dry-run"))
    assert ended.value.code == 2
    assert f"argument {options[0]}" in capsys.readouterr().err


def test_compare_tells_what_was_lost_and_takes_less_text_than_it_would_read(
    demo: Path, shrunk: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = words("compare", demo / "model", shrunk[0], "--text", demo / "handbook", "--length", 64)
    page = tmp_path / "page.html"
    assert main([*command, "--json", "--html", str(page)]) == 0
    facts = json.loads(capsys.readouterr().out)
    report = mo.retrofit.Report.from_dict(facts)
    assert report.held_out is not None and report.held_out.kl > 0
    assert 256 < report.protocol.tokens < 600  # of the 614 of the handbook, in whole sequences
    assert main(command) == 0
    assert f"{report.held_out.kl:.3g}" in capsys.readouterr().out
    assert "KL" in page.read_text("utf-8")


def test_progress_tells_the_time_left_of_each_stage(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 10.0, 20.0, 30.0, 50.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with progress.reporter("shrinking", stages={"compare": "comparing"}) as told:
        assert told is not None
        for stage, done in (("retrofit", 0), ("retrofit", 25), ("compare", 0), ("compare", 50)):
            told(stage, done, 100)
    assert capsys.readouterr().err.splitlines() == [
        "shrinking: 0 of 100 tokens",
        "shrinking: 25 of 100 tokens, about 30 s left",
        "comparing: 0 of 100 tokens",
        "comparing: 50 of 100 tokens, about 20 s left",
    ]
    assert [progress.duration(s) for s in (0.04, 89, 720, 3900 * 2)] == [
        "40 ms",
        "89 s",
        "12 min",
        "2 h 10 min",
    ]
