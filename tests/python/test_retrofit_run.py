# SPDX-License-Identifier: Apache-2.0
"""Plans carried out: what transformers reads of them, which files come out, and what refits save."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

mo = pytest.importorskip("modicum")
np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("compressed_tensors")

from modicum.retrofit import Depth, Ffn, Kv, LowRank, Plan, Quantize, Window, compare  # noqa: E402
from quantized import IDS, relative_error, transformers_model  # noqa: E402
from retrofitted import (  # noqa: E402
    REPORTS,
    calibration_of,
    check_config,
    check_output,
    config_of,
    digests,
    random_text,
    retrofit,
    tensors_of,
    write_source,
)

KINDS = ("Llama", "Qwen2", "Mistral")

FLOAT_PLANS = {
    "kv": Plan(kv=Kv(2)),
    "kv-1-mean": Plan(kv=Kv(1, method="mean", refit="none")),
    "kv-procrustes": Plan(kv=Kv(2, method="procrustes")),
    "ffn-alternating": Plan(ffn=Ffn(128)),
    "ffn-least-squares": Plan(ffn=Ffn(64, refit="least_squares")),
    "ffn-none": Plan(ffn=Ffn(128, choice="magnitude", refit="none")),
    "ffn-wanda": Plan(ffn=Ffn(128, choice="wanda", refit="least_squares")),
    "depth": Plan(depth=Depth(1)),
    "depth-least-squares": Plan(depth=Depth(1, 2, refit="least_squares")),
    "depth-none": Plan(depth=Depth(2, refit="none")),
    "kv-ffn-depth": Plan(kv=Kv(2), ffn=Ffn(128), depth=Depth(1)),
    "depth-none-kv": Plan(kv=Kv(2), depth=Depth(1, refit="none")),
}

QUANTIZED_PLANS = {
    "int8": Plan(quantize=Quantize()),
    "int4": Plan(quantize=Quantize(bits=4)),
    "int8-nearest": Plan(quantize=Quantize(rounding="nearest")),
    "int4-awq": Plan(quantize=Quantize(bits=4, scaling="awq")),
    "int8-smooth-nearest": Plan(quantize=Quantize(rounding="nearest", scaling="smooth")),
    "int4-group64": Plan(quantize=Quantize(bits=4, group=64)),
    "w8a8-smooth": Plan(quantize=Quantize(group=0, scaling="smooth")),
    "w8a8-head": Plan(quantize=Quantize(group=0, rounding="nearest", head_bits=8)),
    "layer-bits": Plan(quantize=Quantize(bits=4, layer_bits={1: 8}, head_bits=8)),
    "head-4": Plan(quantize=Quantize(rounding="nearest", head_bits=4)),
    "kv-ffn-depth-int4": Plan(
        kv=Kv(2), ffn=Ffn(128), depth=Depth(1), quantize=Quantize(bits=4, layer_bits={2: 8}, head_bits=8)
    ),
    "depth-none-nearest": Plan(depth=Depth(1, refit="none"), quantize=Quantize(rounding="nearest")),
    "kv-ffn-nearest": Plan(kv=Kv(2), ffn=Ffn(128, refit="none"), quantize=Quantize(rounding="nearest")),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    tied = {"Llama": False, "Qwen2": True, "Mistral": False}
    return {kind: write_source(folder / kind, kind, tie_word_embeddings=tied[kind]) for kind in KINDS}


def check_shapes(source: Path, out: Path, plan: Plan) -> None:
    """The fields of the plan are in config.json, and no other one changed."""
    before, after = config_of(source), config_of(out)
    expected: dict[str, Any] = {}
    if plan.kv:
        expected |= {"num_key_value_heads": plan.kv.kv_heads, "head_dim": 16}
    if plan.ffn:
        expected["intermediate_size"] = plan.ffn.intermediate_size
    if plan.depth:
        expected["num_hidden_layers"] = before["num_hidden_layers"] - plan.depth.count
    if plan.quantize and plan.quantize.head_bits:
        expected["tie_word_embeddings"] = False
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed - {"layer_types", "max_window_layers", "quantization_config"} <= expected.keys()
    assert all(after[name] == value for name, value in expected.items())
    assert before.keys() <= after.keys()


@pytest.mark.parametrize("plan", FLOAT_PLANS.values(), ids=FLOAT_PLANS.keys())
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_what_comes_out_and_computes_the_same(
    kind: str, plan: Plan, sources: dict[str, Path], tmp_path: Path
) -> None:
    report = retrofit(sources[kind], tmp_path / "out", plan)
    check_shapes(sources[kind], tmp_path / "out", plan)
    logits = check_output(tmp_path / "out")
    before = mo.load(sources[kind], dtype="f32", threads=1).logits(IDS)
    assert 1e-3 < relative_error(logits, before) < 1.5
    for error in report.errors:
        assert 0 <= error.after <= 2 and np.isfinite([error.before, error.held_out_after]).all()
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {*REPORTS, "tokenizer.json"}


@pytest.mark.parametrize("plan", QUANTIZED_PLANS.values(), ids=QUANTIZED_PLANS.keys())
@pytest.mark.parametrize("kind", ["Llama", "Qwen2"])
def test_integers_are_read_by_transformers_and_give_the_logits_that_they_explain(
    kind: str, plan: Plan, sources: dict[str, Path], tmp_path: Path
) -> None:
    assert plan.quantize is not None
    needs_text = plan != QUANTIZED_PLANS["head-4"]
    retrofit(sources[kind], tmp_path / "out", plan, calibration=random_text() if needs_text else None)
    check_shapes(sources[kind], tmp_path / "out", plan)
    check_output(tmp_path / "out")
    packed = {name for name in tensors_of(tmp_path / "out") if name.endswith("_scale")}
    layers = 3 - (plan.depth.count if plan.depth else 0)
    assert len(packed) == 7 * layers + bool(plan.quantize.head_bits)


def test_bits_differ_by_layers_of_the_source_even_where_one_is_dropped(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    plan = QUANTIZED_PLANS["kv-ffn-depth-int4"]
    retrofit(sources["Llama"], tmp_path / "out", plan)
    tensors = tensors_of(tmp_path / "out")
    widths = [tensors[f"model.layers.{i}.mlp.up_proj.weight_packed"].shape[1] for i in range(2)]
    assert widths == [64 * 4 // 32, 64 * 8 // 32]
    assert tensors["lm_head.weight_packed"].shape[1] == 64 * 8 // 32


WINDOWS = {
    "qwen2": ("Qwen2", Window(12, (1, 2)), "qwen2"),
    "qwen2-middle": ("Qwen2", Window(12, (1,)), "qwen2"),
    "llama-all": ("Llama", Window(12, (0, 1, 2)), "mistral"),
    "llama-partial": ("Llama", Window(12, (0, 2), refit="none"), "qwen2"),
    "mistral-all": ("Mistral", Window(12, (0, 1, 2)), "mistral"),
}


@pytest.mark.parametrize(("kind", "window", "model_type"), WINDOWS.values(), ids=WINDOWS.keys())
def test_windows_take_the_form_of_an_architecture_that_has_them(
    kind: str, window: Window, model_type: str, tmp_path: Path
) -> None:
    fields = {"sliding_window": None} if kind == "Mistral" else {}
    source = write_source(tmp_path / "in", kind, tie_word_embeddings=False, **fields)
    calibration = random_text() if window.refit != "none" else None
    retrofit(source, tmp_path / "out", Plan(window=window), calibration=calibration)
    config = config_of(tmp_path / "out")
    assert config["model_type"] == model_type and config["sliding_window"] == 12
    if model_type == "qwen2":
        expected = ["sliding_attention" if i in window.layers else "full_attention" for i in range(3)]
        assert config["layer_types"] == expected and config["use_sliding_window"]
    logits = check_output(tmp_path / "out")
    before = mo.load(source, dtype="f32", threads=1).logits(IDS)
    assert relative_error(logits, before) > 1e-3
    if window.refit == "none":
        assert relative_error(logits[:12], before[:12]) < 1e-5


def test_windows_go_with_all_other_edits(tmp_path: Path) -> None:
    source = write_source(tmp_path / "in", "Qwen2", num_hidden_layers=4)
    plan = Plan(depth=Depth(2), window=Window(12, (1, 3)), kv=Kv(2), ffn=Ffn(128), quantize=Quantize(bits=8))
    retrofit(source, tmp_path / "out", plan)
    config = config_of(tmp_path / "out")
    assert config["layer_types"] == ["full_attention", "sliding_attention", "sliding_attention"]
    check_output(tmp_path / "out")


def test_a_renamed_architecture_keeps_what_its_config_left_to_defaults(tmp_path: Path) -> None:
    """Defaults differ: a Llama without KV heads in its config has one for each query, a Mistral has eight."""
    source = write_source(tmp_path / "in")
    config = config_of(source)
    names = ("num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_parameters")
    for name in (*names, "bos_token_id", "eos_token_id"):
        config.pop(name, None)
    (source / "config.json").write_text(json.dumps(config))
    before = mo.load(source, dtype="f32", threads=1)
    for name, layers in (("mistral", (0, 1, 2)), ("qwen2", (1,))):
        out = tmp_path / name
        retrofit(source, out, Plan(window=Window(256, layers, refit="none")), calibration=None)
        logits = check_output(out)
        assert relative_error(logits, before.logits(IDS)) < 1e-6
        after = mo.load(out).config
        for field in ("max_position_embeddings", "bos_token_id", "eos_token_ids"):
            assert getattr(after, field) == getattr(before.config, field), field


@pytest.mark.parametrize("modules", [("down_proj",), ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj")])
def test_two_factors_run_in_transformers_with_the_class_of_this_package(
    modules: tuple[str, ...], sources: dict[str, Path], tmp_path: Path
) -> None:
    plan = Plan(kv=Kv(2), depth=Depth(1), low_rank=LowRank(modules, 0.5))
    report = retrofit(sources["Qwen2"], tmp_path / "out", plan)
    assert any("no standard form" in warning for warning in report.warnings)
    ranks = config_of(tmp_path / "out")["modicum"]["low_rank"]["modules"]
    tensors = tensors_of(tmp_path / "out")
    assert len(ranks) == 2 * len(modules)
    for name, rank in ranks.items():
        assert tensors[name + ".weight_u"].shape[1] == tensors[name + ".weight_v"].shape[0] == rank
        assert name + ".weight" not in tensors
    check_config(tmp_path / "out")
    mo.interop.register()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.inference_mode():
        expected = theirs.eval()(torch.tensor([IDS])).logits[0].numpy()
    assert relative_error(mo.load(tmp_path / "out", dtype="f32").logits(IDS), expected) < 2e-5


# Which bytes come out


def test_an_empty_plan_copies_every_file_bit_for_bit(sources: dict[str, Path], tmp_path: Path) -> None:
    source = shutil.copytree(sources["Qwen2"], tmp_path / "in")
    (source / "LICENSE").write_bytes(b"")
    (source / "README.md").write_text("of the source\n")
    report = retrofit(source, tmp_path / "out", Plan(), calibration=None)
    assert digests(tmp_path / "out") == digests(source)
    assert any("bit for bit" in warning for warning in report.warnings)


@pytest.mark.parametrize("plan", ["kv-ffn-depth", "kv-ffn-depth-int4"])
def test_the_same_plan_gives_the_same_bytes(plan: str, sources: dict[str, Path], tmp_path: Path) -> None:
    plans = {**FLOAT_PLANS, **QUANTIZED_PLANS}
    for out in ("one", "two"):
        retrofit(sources["Qwen2"], tmp_path / out, plans[plan])
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    retrofit(sources["Qwen2"], tmp_path / "threads", plans[plan], threads=3)
    assert digests(tmp_path / "threads").keys() == digests(tmp_path / "one").keys()
    logits = [mo.load(tmp_path / out, dtype="f32").logits(IDS) for out in ("one", "threads")]
    assert relative_error(*logits) < (1e-3 if plan == "kv-ffn-depth" else 0.3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "threads", "two"]


def test_layers_after_the_last_edit_keep_their_bytes_and_take_new_numbers(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    before = tensors_of(sources["Llama"])
    plan = Plan(depth=Depth(1, refit="least_squares"))
    retrofit(sources["Llama"], tmp_path / "out", plan, calibration=random_text(60))
    after = tensors_of(tmp_path / "out")
    assert len(before) - len(after) == 9
    for name, tensor in after.items():
        original = before[name.replace("layers.1.", "layers.2.")]
        fitted = name == "model.layers.0.mlp.down_proj.weight"
        assert torch.equal(tensor, original) == (not fitted), name


def test_shards_and_their_index_stay_shards(tmp_path: Path) -> None:
    source = write_source(tmp_path / "one", "Qwen2")
    model = transformers_model(source)
    model.save_pretrained(tmp_path / "in", max_shard_size="120KB")
    assert len(list((tmp_path / "in").glob("*.safetensors"))) > 2
    plan = Plan(kv=Kv(2), depth=Depth(1), quantize=Quantize(rounding="nearest"))
    for name, given in (("one-out", source), ("many-out", tmp_path / "in")):
        retrofit(given, tmp_path / name, plan)
    check_output(tmp_path / "many-out")
    index = json.loads((tmp_path / "many-out" / "model.safetensors.index.json").read_text())
    many, one = tensors_of(tmp_path / "many-out"), tensors_of(tmp_path / "one-out")
    assert index["weight_map"].keys() == many.keys() == one.keys()
    assert set(index["weight_map"].values()) == {p.name for p in (tmp_path / "many-out").glob("*.safeten*s")}
    assert len(set(index["weight_map"].values())) > 1
    assert all(torch.equal(many[name], one[name]) for name in many)
    empty = retrofit(tmp_path / "in", tmp_path / "copy", Plan(), calibration=None)
    assert digests(tmp_path / "copy") == digests(tmp_path / "in")
    assert empty.errors == []


def test_a_source_of_links_as_caches_keep_them_is_read_and_copied(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for i, path in enumerate(sorted(sources["Llama"].iterdir())):
        (snapshot / path.name).symlink_to(shutil.copy(path, tmp_path / f"blob{i}"))
    for name, plan in (("empty", Plan()), ("kv", Plan(kv=Kv(2)))):
        retrofit(snapshot, tmp_path / name, plan)
        assert not any(path.is_symlink() for path in (tmp_path / name).iterdir())
        assert mo.load(tmp_path / name).config.hidden_size == 64
    assert digests(tmp_path / "empty") == digests(sources["Llama"])


def test_a_plan_of_json_does_what_a_plan_does(sources: dict[str, Path], tmp_path: Path) -> None:
    plan = Plan(kv=Kv(2), ffn=Ffn(128, refit="none"), quantize=Quantize(layer_bits={2: 4}, head_bits=8))
    (tmp_path / "plan.json").write_text(plan.to_json())
    assert Plan.load(tmp_path / "plan.json") == Plan.from_dict(plan.to_dict()) == plan
    results = []
    for i, given in enumerate((plan, plan.to_dict(), tmp_path / "plan.json", str(tmp_path / "plan.json"))):
        report = retrofit(sources["Llama"], tmp_path / f"{i}", given)
        assert report.plan == plan.to_dict()
        results.append(digests(tmp_path / f"{i}"))
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize(
    "plan",
    [
        *(FLOAT_PLANS[name] for name in ("kv", "kv-ffn-depth", "depth-none")),
        *(QUANTIZED_PLANS[name] for name in ("int4-awq", "w8a8-head", "kv-ffn-depth-int4")),
        Plan(low_rank=LowRank(("down_proj", "q_proj"), 0.5)),
    ],
    ids=str,
)
def test_an_estimate_tells_the_size_of_the_output(
    plan: Plan, sources: dict[str, Path], tmp_path: Path
) -> None:
    calibration = random_text()
    tokens = np.concatenate([calibration.sequences, calibration.held_out])
    facts = mo._core.retrofit_estimate(
        sources["Qwen2"], plan.to_json(), tokens, held_out=len(calibration.held_out)
    )
    report = retrofit(sources["Qwen2"], tmp_path / "out", plan)
    after = sum(kind.after for kind in report.bytes_by_kind)
    assert facts["in_bytes"] == sum(kind.before for kind in report.bytes_by_kind)
    assert facts["out_bytes"] == pytest.approx(after, rel=0.02)
    assert report.peak_bytes_planned == facts["memory_bytes"]


def test_an_estimate_reads_like_a_bill(sources: dict[str, Path], tmp_path: Path) -> None:
    plan = Plan(kv=Kv(2), depth=Depth(1), ffn=Ffn(128))
    estimate = mo.retrofit.estimate(sources["Qwen2"], plan, random_text())
    report = retrofit(sources["Qwen2"], tmp_path / "out", plan)
    assert estimate.kv_bytes_per_token_before == report.kv_bytes_per_token_before == 3 * 4 * 16 * 4
    assert estimate.kv_bytes_per_token_after == report.kv_bytes_per_token_after == 2 * 2 * 16 * 4
    assert 0 < estimate.seconds < 3600
    assert "768 → 256 bytes" in str(estimate)


# What refits save


@pytest.fixture(scope="module")
def stories(data: Path) -> tuple[Path, Any]:
    """stories260K with 8 k tokens of its own kind of text."""
    source = data / "models" / "stories260K"
    path = data / "corpora" / "tinystories" / "tinystories_cased.txt"
    for needed in (source / "config.json", path):
        if not needed.is_file():
            pytest.skip(f"{needed.name} is absent")
    tokenizer = mo.load(source).tokenizer
    ids = tokenizer.encode(path.read_text(encoding="utf-8")[:60_000])[: 64 * 128]
    return source, calibration_of(np.reshape(ids, (64, 128)), 16)


def loss_increase(source: Path, out: Path, calibration: Any) -> float:
    comparison = compare(mo.load(source), mo.load(out), calibration.held_out)
    return float(comparison.student.loss - comparison.teacher.loss)


def check_refits_of_channels(source: Path, calibration: Any, width: int, folder: Path) -> None:
    lost = {}
    for refit in ("none", "least_squares", "alternating"):
        plan = Plan(ffn=Ffn(width, refit=refit))
        retrofit(source, folder / refit, plan, calibration=calibration, threads=2)
        lost[refit] = loss_increase(source, folder / refit, calibration)
    assert 0 < lost["alternating"] < lost["least_squares"] < lost["none"], lost
    assert lost["alternating"] < lost["none"] / 2, lost


def check_kv(source: Path, calibration: Any, kv_heads: int, folder: Path) -> None:
    lost = {}
    for name, edit in (("pca", Kv(kv_heads)), ("mean", Kv(kv_heads, method="mean", refit="none"))):
        retrofit(source, folder / name, Plan(kv=edit), calibration=calibration, threads=2)
        lost[name] = loss_increase(source, folder / name, calibration)
    assert 0 < lost["pca"] < lost["mean"], lost


def test_refits_undo_most_of_what_fewer_channels_cost_stories(stories: Any, tmp_path: Path) -> None:
    check_refits_of_channels(*stories, 128, tmp_path)


def test_complex_components_lose_less_than_means_on_stories(stories: Any, tmp_path: Path) -> None:
    check_kv(*stories, 2, tmp_path)


@pytest.fixture(scope="module")
def own_text(demo: Path) -> tuple[Path, Any]:
    """The demo model with what it writes itself."""
    model = mo.load(demo / "model")
    ids = mo.retrofit.Calibration.generate(model, 2048, length=64, seed=1)
    return demo / "model", mo.retrofit.Calibration.from_text(model, ids, tokens=1280, length=64, held_out=0.4)


def test_refits_keep_the_demo_near_what_it_was(own_text: Any, tmp_path: Path) -> None:
    source, calibration = own_text
    plans = {
        "channels": Plan(ffn=Ffn(448, refit="none")),
        "refitted": Plan(ffn=Ffn(448, refit="least_squares")),
        "mean": Plan(kv=Kv(1, method="mean", refit="none")),
        "complex": Plan(kv=Kv(1)),
    }
    kl = {}
    for name, plan in plans.items():
        retrofit(source, tmp_path / name, plan, calibration=calibration, threads=2)
        kl[name] = compare(mo.load(source), mo.load(tmp_path / name), calibration.held_out).kl
    assert kl["refitted"] < kl["channels"] / 2, kl
    assert kl["complex"] < kl["mean"] / 2, kl
