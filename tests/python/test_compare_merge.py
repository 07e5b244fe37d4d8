# SPDX-License-Identifier: Apache-2.0
"""benchmarks/compare/merge.py on a tiny model, and its tables of given figures."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")  # that the adapter is made with
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "compare"))

import merge  # noqa: E402
from peers import memory, merge_tables  # noqa: E402
from peers.merge_difference import Difference, difference  # noqa: E402
from peers.merge_models import Family, family  # noqa: E402
from peers.merge_rows import ROWS  # noqa: E402
from peers.merge_tables import Cost, Result  # noqa: E402
from peers.merge_worker import MergeWorker, contestant, measure  # noqa: E402
from peers.shapes import SHAPES  # noqa: E402
from peers.shrink_worker import ShrinkError  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

torch.set_num_threads(1)
MERGES = [name for name, row in ROWS.items() if row.contestants[1].who == "mergekit"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def models(work: Path) -> Family:
    return family(work, SHAPES["tiny"])


class InThisProcess:
    """A worker without a process of its own, as starting one takes as long as everything else."""

    def __init__(self, who: str, threads: int) -> None:
        try:
            self.prepare = contestant(who, threads)
        except ImportError as error:
            raise ShrinkError(f"{error.name} is not installed") from error

    def merge(self, ask: dict[str, Any], out: Path) -> dict[str, Any]:
        return measure(self.prepare, ask | {"out": str(out)}) | {"process": 9.0}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(merge, "MergeWorker", InThisProcess)
    monkeypatch.setattr(merge.quiet, "SETTLE", 0.0)
    monkeypatch.setattr(merge.os, "sync", lambda: None)
    yield
    torch.set_num_threads(1)


def small(work: Path, *more: str) -> list[str]:
    fixed = ["--shape", "small", "--rounds", "1", "--threads", "1", "--patience", "0"]
    return [*fixed, "--work", str(work), *more]


# A run


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_measured_and_its_results_compared(name: str, models: Family, work: Path) -> None:
    if name in MERGES:
        pytest.importorskip("mergekit")
    options = merge.parse(small(work, "--bf16"))
    result = merge.measure_row(ROWS[name], models, options, work)
    for one, cost in result.costs.items():
        assert not cost.reason, one
        assert len(cost.seconds) == 1 and cost.seconds[0] > 0 and cost.private[0] > 0
    assert set(result.differences) == (set() if ROWS[name].random else set(result.peers))
    for peer, found in result.differences.items():
        assert found.elements > 10_000
        # Weights in bf16 have many equal magnitudes, of which tools keep different ones.
        assert found.share > 0.9 and found.absolute < 0.02, peer
    for name in ("linear", "slerp", "task_arithmetic", "arrays-task_arithmetic"):
        if result.row == name:
            assert result.differences[result.peers[0]].share == 1
    assert not any((work / one).exists() for one in result.costs)


@pytest.mark.usefixtures("here")
def test_a_run_is_written_and_shown_again(
    models: Family, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "merge.json"
    merge.main(small(work, "--rows", "lora", "arrays-ties", "--out", str(file)))
    printed = capsys.readouterr().out.rstrip()
    document = json.loads(file.read_text("utf-8"))
    assert document["schema"] == "modicum.benchmark.merge/1"
    assert document["bytes"] == models.bytes and document["machine"]["threads"] == 1
    assert [row["row"] for row in document["rows"]] == ["lora", "arrays-ties"]
    assert set(document["rows"][0]["medians"]) == {"modicum", "PEFT"}
    merge.main(["--read", str(file)])
    assert printed.endswith(capsys.readouterr().out.rstrip())
    merge.main(["--read", str(file), "--markdown", "--rows", "lora"])
    shown = capsys.readouterr().out
    assert "| LoRA folded, directories | PEFT |" in shown and "arrays" not in shown


def test_a_merge_has_a_process_of_its_own(models: Family, tmp_path: Path) -> None:
    one = ROWS["task_arithmetic"].contestants[0]
    cost = MergeWorker("modicum", 1).merge(one.ask(models), tmp_path / "out")
    assert (tmp_path / "out" / "config.json").exists()
    assert 0 < cost["seconds"] < cost["process"]
    with pytest.raises(ShrinkError, match="InvalidArgument"):  # the directory is there already
        MergeWorker("modicum", 1).merge(one.ask(models), tmp_path / "out")


@pytest.mark.usefixtures("here")
def test_who_fails_says_why_and_the_others_go_on(
    models: Family, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(threads: int) -> Any:
        raise ModuleNotFoundError("no", name="peft")

    monkeypatch.setattr(importlib.import_module("peers.merge_worker"), "peft", missing)
    options = merge.parse(small(work, "--rounds", "2"))
    result = merge.measure_row(ROWS["lora"], models, options, work)
    assert len(result.costs["modicum"].seconds) == 2
    assert result.costs["PEFT"] == Cost(reason="peft is not installed")
    assert result.differences == {}
    assert merge_tables.text([result]).endswith("peft is not installed")


def test_a_merge_holds_some_tiles_and_no_tensor(tmp_path: Path) -> None:
    wide = replace(SHAPES["tiny"], name="wide", vocab_size=65536, hidden_size=256)  # an embedding of 34 MB
    row = ROWS["task_arithmetic"]
    cost = InThisProcess("modicum", 2).merge(row.contestants[0].ask(family(tmp_path, wide)), tmp_path / "out")
    assert cost["memory"] < 12e6


def test_models_are_made_once_and_differ_from_the_base_by_noise(models: Family, work: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in work.rglob("*.safetensors")}
    assert family(work, SHAPES["tiny"]) == models
    assert before == {file: file.stat().st_mtime_ns for file in work.rglob("*.safetensors")}
    first, second = (difference(models.base, one) for one in models.tuned)
    assert first != second
    assert 0.005 < first.absolute < 0.02


# Differences


def saved(folder: Path, **tensors: Any) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_a_difference_is_that_of_the_weight_where_it_is_largest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peers.merge_difference.PIECE", 4)  # in pieces of two rows
    zeros = torch.zeros(5, 2)
    other = zeros.clone()
    other[4, 1] = 0.5
    a = saved(tmp_path / "a", x=zeros, y=torch.tensor([1.0, 8.0]))
    b = saved(tmp_path / "b", x=other, y=torch.tensor([1.0, 10.0]))
    assert difference(a, a) == Difference(12, 12, 0.0, 0.0)
    assert difference(a, b) == Difference(12, 10, 2.0, 1.0)
    assert difference(a, b).share == 10 / 12


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"x": torch.zeros(2), "z": torch.zeros(1)}, "only one of them holds z"),
        ({"x": torch.zeros(3)}, "x: "),
        ({"x": torch.zeros(2, dtype=torch.bfloat16)}, "x: "),
    ],
)
def test_directories_that_hold_other_tensors_are_not_compared(
    tensors: dict[str, Any], message: str, tmp_path: Path
) -> None:
    a, b = saved(tmp_path / "a", x=torch.zeros(2)), saved(tmp_path / "b", **tensors)
    with pytest.raises(ValueError, match=message):
        difference(a, b)


# Tables


def test_a_ratio_is_one_of_medians_with_what_was_asked_of_the_first_peer() -> None:
    ours = Cost([1.0, 9.0, 2.0], [1.0], [3.0], [4_000_000], [5_000_000])
    found = Result(
        "ties",
        "ties",
        {"modicum": ours, "a": Cost([30.0]), "b": Cost(reason="no")},
        20.0,
        {"a": Difference(10, 9, 0.5, 1.0)},
    )
    assert found.ratio("a") == 15
    assert found.ratio("b") is None
    lines = merge_tables.markdown([found]).splitlines()
    assert "| 15.00× (≥ 20×) | 3.000 | – | 4 | – | 90.0000 % | 0.5 | 1 |" in lines[2]
    assert lines[3].endswith("| – | – | – | no |")
    assert {line.count("|") for line in lines} == {14}
    assert merge_tables.from_json(json.loads(json.dumps(merge_tables.as_json([found])))) == [found]


def test_all_are_identical_only_where_none_differs() -> None:
    costs = {"modicum": Cost([1.0]), "a": Cost([1.0])}
    for identical, shown in ((10**9, "all"), (10**9 - 1, "99.9999 %")):
        result = Result("x", "x", costs, differences={"a": Difference(10**9, identical)})
        assert merge_tables.cells(result, "a")[9] == shown


def test_memory_that_is_given_back_is_seen_and_pages_of_files_are_not(tmp_path: Path) -> None:
    import mmap

    size = 64 << 20
    (tmp_path / "file").write_bytes(bytes(size))
    held = memory.held()
    with (
        memory.Watch() as watch,
        (tmp_path / "file").open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        assert sum(mapped[i] for i in range(0, size, 4096)) == 0
    assert watch.most - held < size / 4
    with memory.Watch() as watch:
        block = bytearray(b"x") * size
        memory.threading.Event().wait(10 * watch.INTERVAL)
        del block
    assert watch.most - held > size / 2
