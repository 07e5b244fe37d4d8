# SPDX-License-Identifier: Apache-2.0
"""What a plan is expected to weigh, take and lose."""

from __future__ import annotations

import json
from pathlib import Path

import modicum as mo
import pytest
from modicum.retrofit import Depth, Ffn, Kv, Plan, Quantize, Target, parse_target
from modicum.retrofit.loss_model import KV_INT8_KL, ErrorCurves, LossModel, Trial
from modicum.retrofit.plan_costs import DecodeSpeed, WeightBytes, kv_bytes_per_token
from planning import CONFIG, HEADS, WIDTH, costs, survey


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mo.retrofit.write_random(CONFIG, tmp_path_factory.mktemp("planner") / "model")


# Targets


def test_a_target_is_read_from_a_command_line() -> None:
    target = parse_target("bytes=300MB, kv_bytes=6KiB,tokens_per_second=12.5,max_kl=1e-2")
    assert target == Target(300_000_000, 6144, 12.5, 0.01)
    assert parse_target("bytes=1.5 GB") == Target(bytes=1_500_000_000)
    assert str(parse_target("bytes=1kB")) == "at most 0.001 MB"
    assert parse_target("max_kl=.5").only_kl
    assert not target.only_kl


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bytes",
        "bytes=",
        "bytes=-3",
        "bytes=0",
        "bytes=3 miles",
        "size=3MB",
        "bytes=1,bytes=2",
        "max_kl=1MB",
    ],
)
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(mo.InvalidArgument, match="target"):
        parse_target(text)


def test_a_target_wants_something() -> None:
    with pytest.raises(mo.InvalidArgument, match="at least one of bytes"):
        Target()
    with pytest.raises(mo.InvalidArgument, match="positive"):
        Target(max_kl=float("nan"))


# Costs


def test_bytes_of_a_quantised_model_are_what_quantising_writes(folder: Path, tmp_path: Path) -> None:
    untied = CONFIG | {"tie_word_embeddings": False, "intermediate_size": 176, "attention_bias": True}
    other = mo.retrofit.write_random(untied, tmp_path / "untied")
    for source, config in ((folder, CONFIG), (other, untied)):
        count = WeightBytes(source, mo.ModelConfig.parse(json.dumps(config)))
        for bits, head in ((8, "keep"), (4, "keep"), (4, "int8")):
            out = tmp_path / f"{source.name}-{bits}-{head}"
            report = mo.retrofit.quantize(source, out, bits=bits, head=head)
            head_bits = {"keep": None, "int8": 8}[head]
            assert count(Plan(quantize=Quantize(bits, head_bits=head_bits))) == report.bytes_after
            assert count(Plan()) == report.bytes_before


def test_bytes_of_other_shapes_are_those_of_a_model_of_that_shape(folder: Path, tmp_path: Path) -> None:
    count = WeightBytes(folder, mo.ModelConfig.parse(json.dumps(CONFIG)))
    shape = {"intermediate_size": 640, "num_key_value_heads": 2, "num_hidden_layers": 6}
    smaller = mo.retrofit.write_random(CONFIG | shape, tmp_path / "smaller")
    other = WeightBytes(smaller, mo.ModelConfig.parse(json.dumps(CONFIG | shape)))
    plan = Plan(depth=Depth(3, 2), kv=Kv(2), ffn=Ffn(640))
    assert count(plan) == other(Plan())
    assert count(Plan(depth=Depth(3, 2), kv=Kv(2), ffn=Ffn(640), quantize=Quantize(4))) == other(
        Plan(quantize=Quantize(4))
    )


def test_a_cache_has_the_bytes_of_its_heads_and_layers() -> None:
    config = mo.ModelConfig.parse(json.dumps(CONFIG))
    assert kv_bytes_per_token(config, Plan()) == 8 * 2 * 8 * 16 * 2
    assert kv_bytes_per_token(config, Plan(), int8=True) == 8 * 2 * 8 * 16
    assert kv_bytes_per_token(config, Plan(depth=Depth(1, 2), kv=Kv(2))) == 6 * 2 * 2 * 16 * 2


def test_mixed_bits_cost_the_time_of_their_shares() -> None:
    speed = DecodeSpeed(costs(), CONFIG, mo.ModelConfig.parse(json.dumps(CONFIG)))
    four, eight = (1 / speed(Plan(quantize=Quantize(bits))) for bits in (4, 8))
    mixed = 1 / speed(Plan(quantize=Quantize(4, layer_bits={1: 8, 2: 8})))
    assert mixed == pytest.approx(0.75 * four + 0.25 * eight)
    assert 1 / speed(Plan()) > eight > four
    # A dropped layer takes its own time with it, whatever bits it would have had.
    without = 1 / speed(Plan(depth=Depth(1, 2), quantize=Quantize(4, layer_bits={1: 8, 2: 8})))
    assert without == pytest.approx(1 / speed(Plan(depth=Depth(3, 2), quantize=Quantize(4))))


# Losses


def test_errors_never_shrink_as_an_edit_grows() -> None:
    noisy = survey()
    noisy["layers"][0]["ffn"] = {"512": 0.01, "640": 0.2, "768": -0.1, "896": 0.05}
    noisy["layers"][0]["kv"] = {"1": {"score": 0, "value": 0}, "2": {"score": 0.1, "value": 0.1}}
    curves = ErrorCurves(noisy, width=WIDTH, kv_heads=HEADS)
    for edits in ([Plan(ffn=Ffn(w)) for w in range(960, 511, -64)], [Plan(kv=Kv(h)) for h in (4, 2, 1)]):
        errors = [next(iter(curves.of(plan).values())) for plan in edits]
        assert errors == sorted(errors)
        assert errors[0] > 0


def test_a_curve_passes_through_its_trials_and_never_falls() -> None:
    errors = ErrorCurves(survey(), width=WIDTH, kv_heads=HEADS)
    trials = [Trial(Plan(ffn=Ffn(w)), kl) for w, kl in ((768, 0.1), (576, 0.05), (640, 0.3))]
    losses = LossModel.fit(errors, trials)
    assert losses.kl(Plan()) == 0
    assert losses.kl(Plan(ffn=Ffn(768))) == pytest.approx(0.1)
    assert losses.kl(Plan(ffn=Ffn(640))) == pytest.approx(0.3)
    kls = [losses.kl(Plan(ffn=Ffn(w))) for w in range(960, 511, -64)]
    assert kls == sorted(kls)
    assert kls[0] > 0


def test_losses_of_edits_add_and_grow_beyond_the_largest_trial() -> None:
    errors = ErrorCurves(survey(), width=WIDTH, kv_heads=HEADS)
    trials = [
        Trial(Plan(ffn=Ffn(768)), 0.5),
        Trial(Plan(kv=Kv(4)), 0.6),
        Trial(Plan(quantize=Quantize(8, rounding="nearest")), 0.001),
        Trial(Plan(quantize=Quantize(8, rounding="nearest", head_bits=8)), 0.003),
    ]
    losses = LossModel.fit(errors, trials)
    both = Plan(kv=Kv(4), ffn=Ffn(768), quantize=Quantize(8, rounding="nearest", head_bits=8))
    assert losses.kl(both) == pytest.approx(0.5 + 0.6 + 0.003)
    assert losses.kl(both, kv_int8=True) == pytest.approx(1.103 + KV_INT8_KL)
    assert losses.kl(Plan(ffn=Ffn(512))) == pytest.approx(2.0)  # four times the error


def test_the_span_that_turns_least_goes_and_the_first_layer_stays() -> None:
    found = survey()
    found["angles"][0][0] = 0.0
    errors = ErrorCurves(found, width=WIDTH, kv_heads=HEADS)
    assert [errors.first_of(n) for n in (1, 2, 3)] == [3, 3, 2]
