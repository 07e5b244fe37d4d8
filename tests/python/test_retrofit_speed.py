# SPDX-License-Identifier: Apache-2.0
"""Shapes of random weights, how models are measured beside each other, and the cost model: never how fast."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import modicum as mo
import pytest
from modicum.retrofit import CostModel, Format, Rate, Shape, Speed, SpeedChange
from modicum.retrofit import cost_model as costs
from modicum.retrofit.shapes import temporary_checkpoint
from tiny import write_tiny_model

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 300,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}
FEW = {"rounds": 1, "prompt_tokens": 8, "new_tokens": 2}


# Shapes


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
        {"model_type": "mistral", "dtype": "float16", "sliding_window": None},
        {"model_type": "qwen2", "torch_dtype": "bfloat16", "tie_word_embeddings": False},
        {"model_type": "qwen3", "head_dim": 32, "dtype": "bfloat16", "num_key_value_heads": 2},
    ],
)
def test_a_shape_is_a_checkpoint_that_modicum_and_transformers_load(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    config = CONFIG | fields
    folder = mo.retrofit.write_random(config, tmp_path / "shape")
    assert json.loads((folder / "config.json").read_text()) == config
    model = mo.load(folder)
    expected = {"float16": "f16", "bfloat16": "bf16"}.get(
        config.get("dtype", config.get("torch_dtype")), "f32"
    )
    assert model.dtype == expected
    logits = model.logits([1, 2, 3])
    assert abs(logits).max() < 100
    assert logits.std() > 0
    _, seen = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not seen["missing_keys"]
    assert not seen["unexpected_keys"]
    assert not seen["mismatched_keys"]


def test_a_quantised_shape_has_its_format_and_goes_after_use(tmp_path: Path) -> None:
    shape = Shape(CONFIG, Format(4, head="int8"))
    with temporary_checkpoint(shape, scratch=tmp_path) as folder:
        assert tmp_path in folder.parents
        formats = (mo.load(folder).quantization or "").split(", ")
        assert sorted(formats) == ["int4 by groups of 32", "int8 by groups of 32"]
    assert not list(tmp_path.iterdir())
    with (
        pytest.raises(mo.IoError, match="expected a folder"),
        temporary_checkpoint(shape, scratch=tmp_path / "none"),
    ):
        pass


def test_a_shape_that_the_engine_does_not_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(mo.FormatError, match="num_key_value_heads"):
        mo.retrofit.write_random(CONFIG | {"num_key_value_heads": 3}, tmp_path / "a")
    with pytest.raises(mo.Unsupported, match="model_type"):
        mo.retrofit.write_random(CONFIG | {"model_type": "gpt2"}, tmp_path / "b")
    with pytest.raises(mo.InvalidArgument, match="dtype"):
        mo.retrofit.write_random(CONFIG | {"dtype": "int8"}, tmp_path / "c")


# Measuring


def test_models_are_measured_in_the_same_rounds_with_the_same_prompt(tmp_path: Path) -> None:
    long = write_tiny_model(tmp_path / "long")
    short = mo.load(write_tiny_model(tmp_path / "short", context=20), threads=1)
    both = mo.retrofit.measure([long, short], rounds=3, threads=2)
    assert [(s.name, s.threads) for s in both] == [("long", 2), ("short", 1)]
    for speed in both:
        assert (speed.prompt_tokens, speed.new_tokens) == (10, 9)
        for rate in (speed.prefill, speed.decode):
            assert len(rate.seconds) == 3
            assert 0 < rate.tokens_per_second.low <= rate.tokens_per_second.value
        facts = json.loads(json.dumps(speed.to_dict()))
        assert facts["rounds"] == 3
        assert facts["decode_tokens_per_second"][0] == speed.decode.tokens_per_second.value
    assert "tokens/s with 2 threads" in str(both[0])


def test_a_speed_up_is_taken_round_by_round() -> None:
    slow, fast = Rate((2.0, 4.0, 8.0)), Rate((1.0, 1.0, 4.0))
    assert fast.speed_up_over(slow) == mo.retrofit.Ratio(2.0, 2.0, 3.0)
    assert slow.tokens_per_second == mo.retrofit.Ratio(0.25, 0.1875, 0.375)
    with pytest.raises(mo.InvalidArgument, match="got 1 and 3"):
        Rate((1.0,)).speed_up_over(slow)


def test_shapes_are_measured_beside_the_source_and_leave_nothing(tmp_path: Path) -> None:
    source = mo.retrofit.write_random(CONFIG, tmp_path / "source")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    seen: list[tuple[str, int, int]] = []
    shapes = [Shape(CONFIG | {"num_hidden_layers": 1}), Shape(CONFIG, Format(8))]
    found = mo.retrofit.measure_shapes(
        source, shapes, scratch=scratch, progress=lambda *facts: seen.append(facts), **FEW
    )
    assert [change.source.name for change in found] == ["source", "source"]
    assert [change.shape.name for change in found] == ["floats", "integers"]
    assert found[0].decode.value == found[0].source.decode.seconds[0] / found[0].shape.decode.seconds[0]
    assert found[0].prefill.value > 0
    assert seen[-1] == ("shapes", 2, 2)
    for stop_at in (0, 1):
        with pytest.raises(mo.Cancelled):
            mo.retrofit.measure_shapes(
                source, shapes, scratch=scratch, progress=lambda _, done, __, at=stop_at: done < at, **FEW
            )
    assert not list(scratch.iterdir())


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    model = mo.load(write_tiny_model(tmp_path / "tiny", context=2))
    with pytest.raises(mo.InvalidArgument, match="at least 3 tokens, got 2"):
        mo.retrofit.measure([model])
    with pytest.raises(mo.InvalidArgument, match="got none"):
        mo.retrofit.measure([])
    with pytest.raises(mo.InvalidArgument, match="rounds"):
        mo.retrofit.measure([model], rounds=0)
    with pytest.raises(mo.Cancelled):
        mo.retrofit.measure([mo.load(write_tiny_model(tmp_path / "b"))], progress=lambda *_: False)


# The cost model


def planted_seconds(config: dict[str, Any], format: Format) -> float:
    """A machine that reads weights at 20 GB/s and loses 50 µs a layer."""
    c = mo.ModelConfig.parse(json.dumps(config))
    of_layers = {None: 2.0, 8: 1.0625, 4: 0.5625}[format.bits]
    of_head = {"keep": 2.0, "int8": 1.0625, "int4": 0.5625}[format.head]
    heads = c.num_attention_heads + c.num_key_value_heads
    weights = c.num_hidden_layers * c.hidden_size * (2 * heads * c.head_dim + 3 * c.intermediate_size)
    cache = 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * 128 * 2
    size = weights * of_layers + c.vocab_size * c.hidden_size * of_head + cache
    return size / 20e9 + 50e-6 * c.num_hidden_layers


REAL: dict[str, Any] = CONFIG | {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
}
FORMATS = [Format(), Format(8), Format(8, head="int8"), Format(4, head="int8")]


def planted_changes(shapes: list[Shape]) -> list[SpeedChange]:
    """As measured on that machine, which is a third slower while every other shape is measured."""
    found = []
    for i, shape in enumerate(shapes):
        slow = (1.0, 1.3)[i % 2]
        here, there = (slow * planted_seconds(*of) for of in ((REAL, Format()), (shape.config, shape.format)))
        rates = [Rate((s, s, s)) for s in (here, there)]
        source, other = (Speed("m", 2, 128, 32, rate, rate) for rate in rates)
        found.append(SpeedChange(source, other))
    return found


def test_costs_of_unseen_shapes_follow_from_those_that_were_measured() -> None:
    shapes = costs.design(REAL, FORMATS)
    assert len(shapes) == 6 + 3 + 1 + 3
    model = CostModel.of(shapes, planted_changes(shapes), FORMATS)
    assert max(abs(miss) for both in model.residuals.values() for miss in both) < 0.01
    assert model.noise == 0
    for format in FORMATS:
        for change in (
            {},
            {"intermediate_size": 2048},
            {"num_hidden_layers": 19},
            {"num_key_value_heads": 2},
            {"intermediate_size": 1984, "num_hidden_layers": 21, "num_key_value_heads": 4},
        ):
            config = REAL | change
            true = planted_seconds(config, format) / planted_seconds(REAL, Format())
            for seconds in (model.decode_seconds, model.prefill_seconds):
                assert seconds(config, format) / seconds(REAL) == pytest.approx(true, rel=0.02)
    assert model.decode_seconds(REAL, 8) == model.decode_seconds(REAL, Format(8))
    with pytest.raises(mo.InvalidArgument, match=r"head weight, int4.*name it"):
        model.decode_seconds(REAL, Format(8, head="int4"))
    with pytest.raises(mo.InvalidArgument, match="int4 by 64"):
        model.prefill_seconds(REAL, Format(4, group=64))
    assert json.loads(json.dumps(model.to_dict()))["formats"][3] == "int4 by 32, head int8"


def test_a_design_keeps_what_belongs_together() -> None:
    config = REAL | {"layer_types": ["full_attention"] * 24, "max_window_layers": 24}
    halves = [s.config for s in costs.design(config, FORMATS) if s.config["num_hidden_layers"] == 12]
    assert len(halves) == 3
    for half in halves:
        assert len(half["layer_types"]) == half["max_window_layers"] == 12
    odd = costs.design(
        REAL | {"num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64}, [Format()]
    )
    assert [s.config["num_key_value_heads"] for s in odd] == [3, 3, 3, 1, 3]


def test_a_fit_is_made_once_in_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = mo.retrofit.write_random(CONFIG, tmp_path / "source")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    first = CostModel.fit(source, [8], scratch=scratch, threads=1, **FEW)
    assert not list(scratch.iterdir())
    assert first.formats == (Format(), Format(8))
    assert first.decode_seconds(CONFIG) > 0
    assert all(cost >= 0 for cost in first.decode.values())
    monkeypatch.setattr(costs, "measure_shapes", None)
    assert CostModel.fit(source, [None, 8], scratch=scratch, threads=1, **FEW) is first
    with pytest.raises(TypeError):
        CostModel.fit(source, [4], scratch=scratch, threads=1, **FEW)
