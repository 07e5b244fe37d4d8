# SPDX-License-Identifier: Apache-2.0
"""benchmarks/compare/retrofit.py: its tables of given figures, and a run on a tiny model."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
np = pytest.importorskip("numpy")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "compare"))

from peers import shrink_baselines, shrink_depth, shrink_tables  # noqa: E402
from peers.shrink_methods import METHODS, Amount, amounts, widths  # noqa: E402
from peers.shrink_quality import Judge, evaluate  # noqa: E402
from peers.shrink_tables import Row, Run, Table  # noqa: E402
from peers.shrink_texts import calibration_ids, split  # noqa: E402
from peers.shrink_worker import ShrinkError, baseline, measure, modicum  # noqa: E402

import retrofit  # noqa: E402

torch.set_num_threads(1)


def run(kl: float, perplexity: float = 6.0, seed: int = 0) -> Run:
    return Run(seed, perplexity, kl, 0.9, 1.0, 2_000_000)


def table(*rows: Row) -> Table:
    return Table("tiny", "ffn", "FFN 64 of 96 (-33%)", 5.0, list(rows))


# Amounts


@pytest.mark.parametrize(
    ("old", "expected"),
    [(640, [576, 512, 448]), (1024, [896, 832, 704]), (352, [320, 288, 256]), (172, [160, 128])],
)
def test_widths_are_multiples_and_none_comes_twice(old: int, expected: list[int]) -> None:
    assert widths(old) == expected


def test_heads_are_divided_only_where_they_divide() -> None:
    config = {"intermediate_size": 128, "num_attention_heads": 6, "num_hidden_layers": 1}
    found = amounts(config, 1)
    assert [a.values["heads"] for a in found if a.table == "kv"] == [3]
    assert not [a for a in found if a.table == "depth"]  # nothing would be left
    assert {a.table for a in amounts(config, 1, ("bits",))} == {"bits"}


def test_what_a_refit_is_measured_against_is_a_method_of_the_same_table() -> None:
    names = {(m.table, m.name) for m in METHODS}
    assert len(names) == len(METHODS)
    assert all((m.table, m.without) in names for m in METHODS if m.without)


# Tables


def test_a_row_above_a_baseline_is_marked_with_the_measure() -> None:
    ours = Row("ours", True, runs=[run(0.3, 6.0)])
    better, half, worse = (
        Row("better", False, runs=[run(0.2, 5.5)]),
        Row("half", False, runs=[run(0.4, 5.9)]),
        Row("worse", False, runs=[run(0.5, 7.0)]),
    )
    found = table(better, half, worse, ours)
    assert shrink_tables.above(found, ours) == ["better", "half in perplexity"]
    assert shrink_tables.above(found, better) == []
    assert "✗ above better, half in perplexity" in shrink_tables.text(found)
    assert "✗" not in shrink_tables.text(table(worse, ours))


def test_the_mean_over_seeds_decides_and_the_spread_is_shown() -> None:
    ours = Row("ours", True, runs=[run(0.1), run(0.3, seed=1)])
    baseline_row = Row("baseline", False, runs=[run(0.21)])
    found = table(baseline_row, ours)
    assert shrink_tables.above(found, ours) == []
    assert "0.200 ± 0.14" in shrink_tables.cells(found, ours)
    assert "0.210" in shrink_tables.cells(found, baseline_row)  # one seed has no spread


def test_the_share_that_a_refit_removes_is_of_the_loss() -> None:
    bare = Row("bare", True, runs=[run(0.5, 20.0)])
    half = Row("half", True, "bare", [run(0.2, 10.0)])
    found = table(bare, half)
    assert shrink_tables.removed(found, half) == pytest.approx(0.5)  # log 10/5 of log 20/5
    assert shrink_tables.removed(found, bare) is None
    found.rows[0] = replace(bare, runs=[run(0.0, 5.0)])
    assert shrink_tables.removed(found, half) is None  # nothing was lost


def test_a_row_that_failed_says_why_and_is_beaten_by_nobody() -> None:
    failed = Row("tool", False, reason="datasets is not installed")
    ours = Row("ours", True, runs=[run(0.3)])
    found = table(failed, ours)
    assert shrink_tables.above(found, ours) == []
    assert "datasets is not installed" in shrink_tables.text(found)
    assert "datasets is not installed" in shrink_tables.markdown(found)


def test_the_summary_leaves_ablations_out_and_lists_what_loses() -> None:
    won = table(
        Row("baseline", False, runs=[run(0.4)]),
        Row("bare", True, runs=[run(0.6)]),
        Row("ours", True, "bare", [run(0.3)]),
    )
    lost = replace(won, rows=[*won.rows[:2], Row("ours", True, "bare", [run(0.5)])])
    words = shrink_tables.summary([won, lost])
    assert "in 1 of 2 tables" in words
    assert words.count("ours above baseline") == 1
    assert "bare above" not in words


def test_markdown_has_a_cell_for_every_column() -> None:
    lines = shrink_tables.markdown(table(Row("a", True, runs=[run(0.1)]), Row("b", False, reason="no")))
    counts = {line.count("|") for line in lines.splitlines() if line.startswith("|")}
    assert counts == {len(shrink_tables.COLUMNS) + 1}


def test_tables_survive_json() -> None:
    found = [table(Row("a", True, "b", [run(0.1), run(0.2, seed=1)]), Row("b", False, reason="no"))]
    assert shrink_tables.from_json(json.loads(json.dumps(shrink_tables.as_json(found)))) == found


@pytest.mark.parametrize(
    ("value", "shown"), [(0.012345, "0.0123"), (123.4, "123"), (2.0, "2.00"), (0.0, "0"), (1e-5, "1.00e-05")]
)
def test_numbers_keep_their_digits(value: float, shown: str) -> None:
    assert shrink_tables._number(value, 3) == shown


# Texts


def test_no_document_is_on_both_sides() -> None:
    learn, judge = split([str(i) * 10 for i in range(10)], 0.25)
    assert learn + judge == [str(i) * 10 for i in range(10)]
    assert len(judge) == 3


def test_calibration_windows_do_not_overlap_and_differ_by_seed() -> None:
    stream = list(range(100, 200))
    ids = calibration_ids(stream, [1], 40, 11, seed=0)
    assert ids.shape == (4, 11) and (ids[:, 0] == 1).all()
    assert len(set(ids[:, 1:].flatten().tolist())) == 40
    assert not np.array_equal(ids, calibration_ids(stream, [1], 40, 11, seed=1))
    with pytest.raises(ValueError, match="at most 110"):
        calibration_ids(stream, [1], 200, 11, seed=0)


# Contestants


IDS = torch.randint(3, 160, (16, 32), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=160,
        hidden_size=32,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=8,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.15)
    path = tmp_path_factory.mktemp("model") / "tiny"
    model.save_pretrained(path)
    np.save(path.parent / "ids.npy", IDS.numpy().astype(np.int32))
    return path


def asked(folder: Path, out: Path, ask: dict[str, Any]) -> dict[str, Any]:
    ids = str(folder.parent / "ids.npy")
    return {"source": str(folder), "out": str(out), "ids": ids, "held_out": 2, "ask": ask}


AMOUNTS = {
    "ffn": Amount("ffn", "", {"width": 64}),
    "kv": Amount("kv", "", {"heads": 2}),
    "bits": Amount("bits", "", {"bits": 4}),
    "depth": Amount("depth", "", {"first": 1, "count": 1}),
}


@pytest.mark.parametrize(
    "method",
    [m for m in METHODS if m.who in ("modicum", "baseline")],
    ids=lambda m: f"{m.table} {m.name}",
)
def test_every_method_writes_what_the_judge_can_load(method: Any, folder: Path, tmp_path: Path) -> None:
    contestant = {"modicum": modicum, "baseline": baseline}[method.who](1)
    request = asked(folder, tmp_path / "out", method.ask(AMOUNTS[method.table].values))
    cost = measure(contestant, request)
    assert cost["seconds"] > 0 and cost["memory"] >= 0
    found = evaluate(retrofit.load(tmp_path / "out"), retrofit.load(folder), IDS)
    assert 0 < found.kl < 5


def test_weights_that_the_configuration_cannot_hold_are_not_left_out_silently(
    folder: Path, tmp_path: Path
) -> None:
    flap = shrink_baselines.ffn_flap(retrofit.load(folder), IDS, 64)
    flap.config.mlp_bias = False
    flap.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"mlp\.\w+_proj\.bias and 8 more"):
        retrofit.load(tmp_path)


def test_a_judge_finds_nothing_between_a_model_and_itself(folder: Path) -> None:
    model = retrofit.load(folder)
    judge = Judge(model, IDS)
    same = judge.quality(model)
    assert same.kl == 0 and same.top1 == 1
    assert judge.kept is not None
    judge.kept = None  # computed anew, as where there is no room for it
    other = shrink_baselines.ffn_magnitude(model, 64)
    assert judge.quality(other) == evaluate(other, model, IDS)


# Depth


def test_replace_me_is_exact_where_the_layer_is_linear_in_the_ffn(folder: Path) -> None:
    """A layer whose output projections are zero adds nothing; ReplaceMe's matrix is then the identity."""
    model = retrofit.load(folder)
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.zero_()
        model.model.layers[1].mlp.down_proj.weight.zero_()
        want = model(IDS, use_cache=False).logits
        new = shrink_depth.depth_replace_me(model, IDS, 1)
        assert new.config.num_hidden_layers == 2
        assert float((new(IDS, use_cache=False).logits - want).norm() / want.norm()) < 1e-4
    assert shrink_depth.least_angle(model, IDS) == 1
    assert model.config.num_hidden_layers == 3


def test_replace_me_comes_nearer_to_the_hidden_states_than_the_drop(folder: Path) -> None:
    model = retrofit.load(folder)

    def hidden(one: Any) -> Any:
        with torch.no_grad():
            states = one.model(IDS, use_cache=False, output_hidden_states=True).hidden_states
        return states[-1]

    drop = shrink_depth.depth_drop(model, 2)
    bridge = shrink_depth.depth_replace_me(model, IDS, 2)
    want = hidden(model)
    assert (hidden(bridge) - want).norm() < (hidden(drop) - want).norm()


@pytest.mark.parametrize(("first", "count"), [(0, 1), (2, 2), (1, 0)])
def test_layers_that_are_not_there_are_refused(folder: Path, first: int, count: int) -> None:
    with pytest.raises(ValueError, match="expected layers within 1 to 2"):
        shrink_depth.depth_drop(retrofit.load(folder), first, count)


# The whole


class InThisProcess:
    """A worker without a process of its own, as starting one takes as long as everything else."""

    def __init__(self, who: str, threads: int, python: str) -> None:
        if who == "auto-round":
            raise ShrinkError("auto_round is not installed")
        self.run = {"modicum": modicum, "baseline": baseline}[who](threads)
        self.process = self

    def poll(self) -> None:
        return None

    def shrink(
        self, source: Path, out: Path, ids: Path, held_out: int, ask: dict[str, Any]
    ) -> dict[str, Any]:
        request = {"source": str(source), "out": str(out), "ids": str(ids), "held_out": held_out, "ask": ask}
        return measure(self.run, request)

    def close(self) -> None:
        pass


class Subject:
    """A model with random ids for a text."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, "tiny"
        self.judge = Judge(retrofit.load(folder), IDS)
        self.perplexity = 160.0

    def ids(self, seed: int) -> Any:
        return np.roll(IDS.numpy(), seed, axis=1).astype(np.int32)


def test_methods_that_read_no_text_run_once_and_others_for_each_seed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrofit, "ShrinkWorker", InThisProcess)
    options = retrofit.parse(["--seeds", "2", "--threads", "1", "--only", "depth"])
    contestants = retrofit.Contestants(options)
    found = retrofit.measure_amount(Subject(folder), contestants, AMOUNTS["depth"], options)
    assert {row.method: len(row.runs) for row in found.rows} == {
        "mergekit passthrough": 0,
        "drop": 1,
        "ReplaceMe": 2,
        "modicum, no refit": 1,
        "modicum least squares": 2,
        "modicum alternating": 2,
    }
    assert found.rows[0].reason == "no --tools given"
    bare, drop = found.row("modicum, no refit"), found.row("drop")
    assert bare and drop and bare.runs[0].kl == pytest.approx(drop.runs[0].kl, rel=1e-4)


def test_a_relative_path_is_one_from_here(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers run elsewhere; the model is looked for where the command was given."""
    (tmp_path / "a.txt").write_text("a\n\nb", encoding="utf-8")
    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr(retrofit, "encode", lambda *_: list(range(3, 150)))
    monkeypatch.setattr("modicum.Model.tokenizer", None)
    options = retrofit.parse(
        ["--calibration", str(tmp_path / "a.txt"), "--length", "32", "--evaluation-tokens", "64"]
    )
    assert retrofit.Subject(Path("tiny"), options).folder == folder.resolve()


def test_who_does_not_start_fails_each_time_and_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrofit, "ShrinkWorker", InThisProcess)
    contestants = retrofit.Contestants(retrofit.parse(["--tools", "python"]))
    for _ in range(2):
        with pytest.raises(ShrinkError, match="auto_round is not installed"):
            contestants.worker("auto-round")
    assert contestants.worker("baseline") is contestants.worker("baseline")


def test_an_unknown_table_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        retrofit.parse(["--only", "ffn,width"])
    assert "'width'" in capsys.readouterr().err
