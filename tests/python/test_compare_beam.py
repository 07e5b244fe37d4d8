# SPDX-License-Identifier: Apache-2.0
"""benchmarks/compare/beam.py on a tiny model, and its tables of given figures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "compare"))

import beam
from peers import beam_tables
from peers.beams import ROWS, Cell, Measured, Result, Row, as_json, from_json
from peers.engine import Contestant, Setup, UnavailableError
from peers.shapes import SHAPES, checkpoint
from peers.worker import TimeLimitError, load


class InThisProcess:
    """A worker without a process of its own, as starting one takes as long as everything else."""

    def __init__(self, contestant: Contestant, shape: str, cache: Path, threads: int) -> None:
        self.foreign = 0.0
        self.limit: float | None = None
        setup = Setup(SHAPES[shape], checkpoint(cache, SHAPES[shape]), threads)
        self.engine = load(contestant, setup)[1]

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self.engine, method)(*arguments)

    def limit_memory(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beam, "Worker", InThisProcess)
    monkeypatch.setattr(beam.quiet, "SETTLE", 0.0)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


GRID = [
    "--shapes",
    "tiny",
    "--threads",
    "1",
    "--prompts",
    "24",
    "--beams",
    "4",
    "1",
    "--new",
    "6",
    "--repeat",
    "0",
]


@pytest.mark.usefixtures("here")
def test_a_run_measures_checks_and_tells_all_contestants(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    ours = ("modicum f32", "transformers f32", "transformers f32 shared")
    file = tmp_path / "beam.json"
    beam.main([*GRID, "--rows", "f32", "--cache", str(cache), "--patience", "0", "--json", str(file)])
    printed = capsys.readouterr().out
    for name in ours:
        assert f"{name}: the tokens of transformers f32" in printed
    assert "**tiny, f32: 24 tokens read, 6 written" in printed
    beam.main(["--read", str(file)])
    again = capsys.readouterr().out.strip()
    assert again and printed.strip().endswith(again)
    for beams in (1, 4):
        assert f"| tiny f32 (24, 6) | {beams} |" in again


@pytest.mark.usefixtures("here")
def test_beams_from_one_prefill_are_those_of_many(cache: Path):
    field = field_of("f32", cache)
    field.start()
    for beams in (1, 3, 5):
        cell = Cell("tiny", 20, 7, beams)
        stock, shared = (field.search(f"transformers f32{way}", cell, 0)["ids"] for way in ("", " shared"))
        assert stock == shared


def field_of(row: str, cache: Path, *options: str) -> beam.Field:
    setup = Setup(SHAPES["tiny"], checkpoint(cache, SHAPES["tiny"]), 1)
    return beam.Field(
        ROWS[row], setup, beam.parse([*GRID, "--cache", str(cache), "--patience", "0", *options])
    )


class Scripted:
    """An engine that takes a second a beam, and ends above 4 beams as it is told."""

    started = 0

    def __init__(self, contestant: Contestant, *_: Any) -> None:
        if contestant.name == "absent":
            raise UnavailableError("absent is not installed")
        self.foreign, self.limit = 0.0, None
        self.searched = 0
        Scripted.started += 1

    def call(self, method: str, *arguments: Any) -> Any:
        if method == "held":
            return (1000 << 20) + (self.searched << 24)
        _, beams, new = arguments
        if beams > 4:
            raise TimeLimitError("> 9 s") if beams > 8 else UnavailableError("its process ended with 1")
        self.searched += 1
        return {"seconds": float(beams), "peak": (1016 + beams) << 20, "tokens": 0, "ids": [3] * new}

    limit_memory = close = InThisProcess.close


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, cache: Path) -> beam.Field:
    monkeypatch.setattr(beam, "Worker", Scripted)
    monkeypatch.setattr(beam.quiet, "SETTLE", 0.0)
    monkeypatch.setattr(beam, "CONTESTANTS", [Contestant(name, "x", "") for name in ("a", "absent")])
    monkeypatch.setattr(Contestant, "name", property(lambda self: self.engine))
    field = field_of("f32", cache, "--limit", "9", "--once", "3", "--repeat", "2")
    field.row = Row("f32", ("a", "absent"), ())
    field.failed = {"a": [], "absent": []}
    field.options.engines = ["a"]
    return field


def test_who_is_absent_is_left_out_and_who_fails_is_asked_no_more(scripted: beam.Field):
    assert scripted.start() == ["a"]

    def measured(beams: int, prompt: int = 24) -> Measured:
        return beam.measure_cell(scripted, ["a"], Cell("tiny", prompt, 6, beams)).contestants["a"]

    assert measured(2).seconds == [2, 2, 2]
    assert measured(2).memory == 2 << 20
    assert measured(4).seconds == [4]  # longer than --once
    before = Scripted.started
    over = measured(16)
    assert (over.reason, over.at_least, over.median) == ("> 9 s", 9, None)
    assert measured(16, prompt=99) == measured(17) == over
    assert measured(8).reason == "failed, or out of memory"
    assert measured(9).reason == "failed, or out of memory"
    assert Scripted.started == before + 1  # only the 8 beams were tried after the 16
    assert measured(2).seconds == [2, 2, 2]


def test_who_keeps_memory_starts_afresh(scripted: beam.Field):
    scripted.start()
    before = Scripted.started
    for _ in range(3):
        beam.measure_cell(scripted, ["a"], Cell("tiny", 24, 6, 1))
    assert Scripted.started == before + 2


def test_a_worse_answer_is_refused(capsys: pytest.CaptureFixture[str]):
    beam.judge_answer("modicum f32", True, 0.0)
    beam.judge_answer("modicum f32", False, -5e-5)
    beam.judge_answer("OpenVINO GenAI int8", False, -0.02)
    assert capsys.readouterr().out.count("transformers f32") == 3
    for name, difference in (("CTranslate2 float32", -1e-3), ("modicum int8", -0.1), ("x", float("nan"))):
        with pytest.raises(SystemExit, match=name):
            beam.judge_answer(name, False, difference)


def result(row: str, cell: Cell, **seconds: float | None) -> Result:
    """`a_b` stands for the contestant "a b"; without seconds it was ended after 100."""
    return Result(
        row,
        cell,
        {
            name.replace("_", " "): Measured([9.0, value], 60_000_000 * i)
            if value
            else Measured(reason="> 100 s", at_least=100.0)
            for i, (name, value) in enumerate(seconds.items(), 1)
        },
    )


def test_tables_tell_ratios_beside_what_is_asked():
    cell = Cell("smollm2-135m", 2048, 64, 16)
    found = [
        result("f32", cell, modicum_f32=2.0, transformers_f32=None, transformers_f32_shared=3.0),
        result("f32", Cell("smollm2-135m", 2048, 64, 4), modicum_f32=2.0, transformers_f32=11.0),
    ]
    assert from_json(as_json(found)) == found
    text = beam_tables.report(found)
    assert "| 4 | 2.000 (32.0/s) | 11.0 (5.818/s) |" in text.replace(" – |", "")
    assert "> 50.00× (≥ 15×)" in text
    assert "1.50× (≥ 2×)" in text
    assert "| smollm2-135m f32 (2048, 64) | 4 | 5.818 → 32.0 | 5.50 | 0.057 → 0.028 | 2.0 |" in text
    assert "modicum f32 against transformers f32 shared | 1.50× | ≥ 2× | **no** |" in text
    assert "modicum f32 against transformers f32 | > 50.00× | ≥ 15× | yes |" in text
    # 60 MB in keys and values of 2048 + 64 + 0.3 · 16 · 64 tokens, each of 46,080 bytes
    assert "memory / unique tokens' | 0.54× | ≤ 1.15× | yes |" in text


def test_the_faster_of_two_formats_counts():
    cell = Cell("qwen2.5-0.5b", 512, 64, 4)
    one = result("int8", cell, modicum_int8=3.0, modicum_int8_channel=2.0, OpenVINO_GenAI_int8=2.5)
    assert (
        "modicum int8 channel against OpenVINO GenAI int8 | 1.25× | ≥ 1.3× | **no** |"
        in beam_tables.report([one])
    )


def test_disturbance_is_that_of_the_passes_that_count():
    measured = Measured()
    for seconds, others in ((9.0, 0.9), (1.0, 0.2), (3.0, 0.4), (2.0, 0.1)):
        measured.add(seconds, others)
    assert (measured.median, measured.others) == (2.0, 0.4)
    cell = Cell("tiny", 512, 64, 4)
    found = [Result("f32", cell, {"modicum f32": measured, "transformers f32": Measured([1.0], others=0.3)})]
    assert beam_tables.report(found).endswith(f"up to 0.40 processors busy (modicum f32 in {cell}).")


def test_memory_is_plotted(tmp_path: Path):
    pytest.importorskip("matplotlib")
    cells = [Cell("smollm2-135m", 512, 64, beams) for beams in (4, 16)]
    found = [result("f32", cell, modicum_f32=2.0, transformers_f32=11.0) for cell in cells]
    beam_tables.plot(found, tmp_path / "memory.svg")
    assert "unique tokens" in (tmp_path / "memory.svg").read_text()
