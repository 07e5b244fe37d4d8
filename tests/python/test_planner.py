# SPDX-License-Identifier: Apache-2.0
"""The planner: what it chooses from made-up errors and losses, and one plan of a real model."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import modicum as mo
import pytest
from modicum.retrofit import Calibration, Ffn, Kv, Plan, Quantize, Target
from modicum.retrofit.candidates import Candidate, Space
from modicum.retrofit.loss_model import KV_INT8_KL, ErrorCurves
from modicum.retrofit.plan_costs import DecodeSpeed, kv_bytes_per_token
from planning import CONFIG, HEADS, WIDTH, World, costs, survey


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mo.retrofit.write_random(CONFIG, tmp_path_factory.mktemp("planner") / "model")


@pytest.fixture
def world(folder: Path) -> Callable[..., World]:
    return partial(World, folder)


# Choices


def test_the_least_loss_that_meets_the_target_is_chosen(world: Callable[..., World]) -> None:
    cheap_ffn = world(slopes={"ffn": 1e-4, "quantize gptq": 100.0, "quantize nearest": 200.0})
    limit = int(0.8 * cheap_ffn.bytes(Plan()))
    planned = cheap_ffn.plan(bytes=limit)
    assert planned.plan is not None
    assert planned.plan.ffn is not None
    assert planned.plan.quantize is None
    assert planned.predicted["bytes"] == cheap_ffn.bytes(planned.plan) <= limit
    space = Space.of(cheap_ffn.parsed, Target(bytes=limit), kv_int8=True)
    errors = ErrorCurves(survey(), width=WIDTH, kv_heads=HEADS)
    firsts = {n: errors.first_of(n) for n in space.drops}
    every = space.candidates(firsts, errors.eight_bits_first())
    meeting = [c for c in every if cheap_ffn.bytes(c.plan) <= limit]
    assert len(meeting) > 100
    assert cheap_ffn.kl(planned.plan) == pytest.approx(min(cheap_ffn.kl(c.plan) for c in meeting))
    assert "No quantisation" not in planned.advice
    assert planned.advice.startswith("Retrofit")


def test_quantisation_wins_where_it_loses_less_and_the_advice_says_not_to_retrofit(
    world: Callable[..., World],
) -> None:
    usual = world()
    planned = usual.plan(bytes=int(0.6 * usual.bytes(Plan())))
    assert planned.plan == Plan(quantize=Quantize(8, rounding="gptq"))
    assert not planned.chosen.candidate.retrofit
    assert "Do not retrofit" in planned.advice
    rival = min(
        (c for c in planned.considered if c.candidate.retrofit and c.verdict == "loses more"),
        key=lambda c: c.loss,
    )
    assert rival.trial is not None  # what is said of the loser was measured, too
    assert rival.loss > planned.chosen.loss
    assert f"{rival.loss:.3g}" in planned.advice


def test_a_difference_that_may_be_chance_is_no_reason_to_change_shapes(world: Callable[..., World]) -> None:
    slopes = {"ffn": 1e-6, "quantize gptq": 0.05}
    sure, unsure = (world(slopes=slopes, standard_error=error) for error in (None, 0.01))
    limit = int(0.75 * sure.bytes(Plan()))
    chosen = sure.plan(bytes=limit)
    assert chosen.plan is not None
    assert chosen.plan.ffn is not None
    careful = unsure.plan(bytes=limit)
    assert careful.plan == Plan(quantize=Quantize(8))
    assert "no better for sure, and changes shapes" in str(careful)


def test_layers_that_rounding_hurts_most_keep_8_bits(world: Callable[..., World]) -> None:
    rounding = world(slopes={"ffn": 1e3, "kv": 1e3, "depth": 1e3})
    four, eight = (rounding.bytes(Plan(quantize=Quantize(bits))) for bits in (4, 8))
    planned = rounding.plan(bytes=(four + eight) // 2 + 1000)
    assert planned.plan is not None
    assert planned.plan.quantize is not None
    kept = set(planned.plan.quantize.layer_bits)
    assert kept == {1, 3, 5, 7}  # of greater sensitivity than any other
    assert all(bits == 8 for bits in planned.plan.quantize.layer_bits.values())
    assert Plan.from_dict(planned.plan.to_dict()) == planned.plan


def test_int8_caches_win_over_fewer_heads(world: Callable[..., World]) -> None:
    usual = world(slopes={"depth": 100.0})
    half = kv_bytes_per_token(usual.parsed, Plan()) // 2
    planned = usual.plan(kv_bytes_per_token=half)
    assert planned.plan is None
    assert planned.kv_int8
    assert planned.predicted["kl"] == KV_INT8_KL
    assert "Do not retrofit: keep keys and values as int8" in planned.advice
    assert "not measured on this model" in planned.advice
    assert "loses more: 4 KV heads (" in planned.advice
    assert all(plan.ffn is None and plan.quantize is None for plan in usual.tried)

    without = usual.plan(kv_bytes_per_token=half, kv_int8=False)
    assert without.plan == Plan(kv=Kv(4))
    assert not without.kv_int8


def test_heads_are_merged_on_top_of_an_int8_cache_where_that_is_not_enough(
    world: Callable[..., World],
) -> None:
    usual = world(slopes={"depth": 100.0})
    planned = usual.plan(kv_bytes_per_token=kv_bytes_per_token(usual.parsed, Plan()) // 4)
    assert planned.plan == Plan(kv=Kv(4))
    assert planned.kv_int8
    assert "counts on an engine that keeps keys and values as int8" in planned.advice
    assert planned.chosen.loss == pytest.approx(usual.kl(planned.plan) + KV_INT8_KL)


def test_keys_that_are_normalised_by_head_are_not_merged(world: Callable[..., World]) -> None:
    config = mo.ModelConfig.parse(json.dumps(CONFIG | {"model_type": "qwen3"}))
    assert Space.of(config, Target(kv_bytes_per_token=1), kv_int8=True).kv_heads == []
    assert Space.of(world().parsed, Target(kv_bytes_per_token=1), kv_int8=True).kv_heads == [4, 2, 1]


def test_what_was_measured_counts_more_than_what_was_predicted(world: Callable[..., World]) -> None:
    def surprise(plan: Plan) -> float:
        return 1.0 if plan.ffn and plan.quantize else 0.0

    slopes = {"ffn": 1e-6, "quantize gptq": 1e-2, "quantize nearest": 1e-2, "kv": 9.0, "depth": 9.0}
    calm, wild = world(slopes=slopes), world(slopes=slopes, extra=surprise)
    limit = calm.bytes(Plan(ffn=Ffn(576), quantize=Quantize(8)))
    expected = calm.plan(bytes=limit)
    assert expected.plan is not None
    assert expected.plan.ffn and expected.plan.quantize
    planned = wild.plan(bytes=limit)
    assert planned.plan is not None
    assert planned.plan.ffn is None
    assert planned.chosen.loss < 1.0
    refused = next(c for c in planned.considered if c.candidate.plan == expected.plan)
    assert refused.loss == pytest.approx(wild.kl(expected.plan))
    assert refused.kl < 0.1


def test_the_fewest_bytes_within_a_loss_are_found_and_measured(world: Callable[..., World]) -> None:
    usual = world()
    planned = usual.plan(max_kl=0.01)
    assert planned.plan is not None
    assert planned.chosen.trial is not None
    assert planned.chosen.loss <= 0.01
    assert planned.predicted["bytes"] < 0.6 * usual.bytes(Plan())
    strict = usual.plan(max_kl=1e-9)
    assert strict.plan is None
    assert strict.chosen.bytes == usual.bytes(Plan())
    assert "Leave the model as it is" in strict.advice


def test_a_loss_that_is_passed_in_the_trial_makes_way_for_the_next(world: Callable[..., World]) -> None:
    def more(plan: Plan) -> float:
        return 0.02 if plan.quantize and plan.quantize.layer_bits else 0.0

    slopes = {"ffn": 1e3, "kv": 1e3, "depth": 1e3}
    expected = world(slopes=slopes).plan(max_kl=0.01)
    assert expected.plan is not None
    assert expected.plan.quantize is not None
    assert expected.plan.quantize.layer_bits
    planned = world(slopes=slopes, extra=more).plan(max_kl=0.01)
    assert planned.plan == Plan(quantize=Quantize(8))
    assert any(c.verdict == "loses too much" and c.kl < 0.01 < c.loss for c in planned.considered)


def test_speed_is_a_target_where_a_cost_model_tells_it(world: Callable[..., World]) -> None:
    usual = world()
    speed = DecodeSpeed(costs(), CONFIG, usual.parsed)
    wanted = 1.01 * speed(Plan(quantize=Quantize(8)))
    planned = usual.plan(tokens_per_second=wanted, costs=costs())
    assert planned.plan is not None
    assert planned.predicted["tokens_per_second"] == speed(planned.plan) >= wanted
    assert planned.plan.quantize is not None
    assert planned.plan.quantize.head_bits is not None  # the cheapest way to a little more
    with pytest.raises(mo.InvalidArgument, match=r"the most is .* tokens/s, by"):
        usual.plan(tokens_per_second=1e9, costs=costs())


def test_a_model_that_meets_the_target_is_left_alone(world: Callable[..., World]) -> None:
    usual = world()
    planned = usual.plan(bytes=usual.bytes(Plan()))
    assert planned.plan is None
    assert "nothing to do" in planned.advice
    assert usual.surveys == 0
    assert not usual.tried


def test_what_cannot_be_reached_is_refused_before_any_work_with_the_best_there_is(
    world: Callable[..., World],
) -> None:
    usual = world()
    with pytest.raises(mo.InvalidArgument, match="the fewest bytes are") as refusal:
        usual.plan(bytes=1000)
    assert usual.surveys == 0
    told = int(str(refusal.value).split("the fewest bytes are ")[1].split()[0])
    assert usual.plan(bytes=told).predicted["bytes"] == told
    with pytest.raises(mo.InvalidArgument, match=f"bytes are {told} .*; the smallest cache has"):
        usual.plan(bytes=told - 1, kv_bytes_per_token=1)


def test_a_loss_that_the_rest_of_the_target_rules_out_is_refused_with_the_least_one(
    world: Callable[..., World],
) -> None:
    usual = world()
    limit = int(0.3 * usual.bytes(Plan()))
    least = usual.plan(bytes=limit).chosen.loss
    with pytest.raises(mo.InvalidArgument, match="the least KL of what meets the rest") as refusal:
        usual.plan(bytes=limit, max_kl=least / 2)
    assert f"is {least:.3g}" in str(refusal.value)
    assert usual.plan(bytes=limit, max_kl=1.1 * least).chosen.loss <= 1.1 * least


# What is told


def test_a_plan_is_told_as_json_text_and_html(world: Callable[..., World]) -> None:
    usual = world(standard_error=1e-6)
    planned = usual.plan(bytes=int(0.6 * usual.bytes(Plan())))
    facts = json.loads(planned.to_json())
    assert facts["schema"] == "modicum.retrofit.planned/1"
    assert planned.plan is not None
    assert facts["plan"] == planned.plan.to_dict()
    assert facts["target"] == {"bytes": int(0.6 * usual.bytes(Plan()))}
    assert facts["considered"][0]["verdict"] == "chosen"
    assert len(facts["trials"]) == len(usual.tried) == len({str(p) for p in usual.tried})
    text = str(planned)
    for baseline in ("int8 gptq", "int8 nearest", "int4 gptq", "int4 nearest"):
        assert any(line.startswith(baseline) for line in text.splitlines())
    assert "too large" in text
    page = planned._repr_html_()
    assert page.count("<tr") == 1 + len(planned.considered)
    assert "<svg" in page


def test_the_frontier_holds_the_best_of_all_sizes_and_what_was_refused(world: Callable[..., World]) -> None:
    planned = world().plan(bytes=int(0.6 * world().bytes(Plan())))
    assert [point.name for point in planned.frontier if point.chosen] == [str(planned.chosen.candidate)]
    names = [point.name for point in planned.frontier]
    assert len(set(names)) == len(names)
    assert "int4 nearest" in names
    assert "the source" in names
    smallest = min(planned.frontier, key=lambda point: point.bytes)
    assert smallest.bytes < 0.25 * world().bytes(Plan())
    assert str(Candidate(Plan(kv=Kv(2)), kv_int8=True)) == "2 KV heads, KV kept as int8"


# A real model


@pytest.fixture(scope="module")
def source(data: Path) -> Path:
    return data / "models" / "stories260K"


@pytest.fixture(scope="module")
def calibration(data: Path, source: Path) -> Calibration:
    text = data / "corpora" / "tinystories" / "stories.jsonl"
    return Calibration.from_text(mo.load(source), text, tokens=2048, length=128, held_out=0.25)


def test_a_plan_of_a_real_model_meets_its_target_and_can_be_carried_out(
    source: Path, calibration: Calibration, tmp_path: Path
) -> None:
    stages: list[str] = []

    def progress(stage: str, done: int, total: int) -> None:
        assert 0 <= done <= total
        stages.append(stage)

    planned = mo.retrofit.plan(
        source,
        target=Target(bytes=400_000),
        calibration=calibration,
        trial_tokens=1024,
        finalists=1,
        scratch=tmp_path,
        progress=progress,
    )
    assert not list(tmp_path.iterdir())
    assert "trials" in stages
    assert planned.plan is not None
    for one in planned.considered:
        assert one.trial is None or one.trial.bytes == one.bytes
    assert planned.predicted["bytes"] <= 400_000
    trial = planned.chosen.trial
    assert trial is not None
    measured = [c for c in planned.considered if c.trial and c.bytes <= 400_000]
    assert any(c.candidate.retrofit for c in measured)
    least = min(measured, key=lambda c: c.loss)
    chance = least.standard_error + planned.chosen.standard_error
    assert trial.kl <= least.loss + (0 if planned.chosen.candidate.retrofit else chance)
    out = tmp_path / "out"
    report = mo._core.retrofit_run(
        source,
        out,
        planned.plan.to_json(),
        calibration.sequences,
        held_out=4,
        relative=True,
        work="",
        threads=2,
        progress=None,
    )
    assert report["bytes_after"] == planned.predicted["bytes"]
    assert mo.retrofit.compare(mo.load(source), mo.load(out), calibration.held_out).kl < 10 * trial.kl + 0.01


def test_planning_stops_when_asked_to_and_leaves_nothing(
    source: Path, calibration: Calibration, tmp_path: Path
) -> None:
    with pytest.raises(mo.Cancelled):
        mo.retrofit.plan(
            source,
            target=Target(max_kl=0.1),
            calibration=calibration,
            trial_tokens=1024,
            scratch=tmp_path,
            progress=lambda stage, done, total: stage != "trials",
        )
    assert not list(tmp_path.iterdir())


def test_what_is_quantised_already_is_refused(source: Path, calibration: Calibration, tmp_path: Path) -> None:
    mo.retrofit.quantize(source, tmp_path / "int8")
    with pytest.raises(mo.Unsupported, match="got int8 by groups of 32; start from the model"):
        mo.retrofit.plan(tmp_path / "int8", target=Target(bytes=1), calibration=calibration)
    with pytest.raises(mo.InvalidArgument, match="finalists: expected at least 1"):
        mo.retrofit.plan(source, target=Target(bytes=1), calibration=calibration, finalists=0)
    with pytest.raises(mo.InvalidArgument, match="trial_tokens: expected at least 1"):
        mo.retrofit.plan(source, target=Target(bytes=1), calibration=calibration, trial_tokens=0)
