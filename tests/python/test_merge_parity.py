# SPDX-License-Identifier: Apache-2.0
"""Merges as mergekit and PEFT make them, the same models given to both."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import modicum as mo  # noqa: E402
from merging import (  # noqa: E402
    STEP,
    changed,
    equal,
    largest_difference,
    logits_of,
    tensors_of,
    transformers_model,
    write_base,
    write_like,
    write_tuned,
)

SEED = 7
KINDS = {
    "llama": ("Llama", 1, {}),
    "llama-tied-sharded": ("Llama", 3, {"tie_word_embeddings": True}),
    "qwen2-sharded": ("Qwen2", 3, {"tie_word_embeddings": False}),
    "qwen2-tied": ("Qwen2", 1, {"tie_word_embeddings": True}),
}


@pytest.fixture(scope="module", params=KINDS)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and three models that were made of it, in bf16: many of their differences are of one size."""
    kind, shards, fields = KINDS[request.param]
    folder = tmp_path_factory.mktemp("family")
    whole = write_base(folder / "whole", kind, **fields)
    base = write_like(whole, folder / "base", tensors_of(whole), shards=shards)
    assert ("lm_head.weight" in tensors_of(base)) != bool(fields.get("tie_word_embeddings"))
    assert any(name.endswith("q_proj.bias") for name in tensors_of(base)) == (kind == "Qwen2")
    return [base, *(write_tuned(base, folder / f"tuned{i}", i, shards=shards) for i in (1, 2, 3))]


# mergekit


@pytest.fixture
def mergekit(monkeypatch: pytest.MonkeyPatch) -> Any:
    """mergekit with equal magnitudes in order, which it leaves to chance, and with our masks for DARE."""
    module = pytest.importorskip("mergekit.merge")
    from mergekit.merge_methods.generalized_task_arithmetic import GeneralizedTaskArithmeticMerge as Merge

    argsort, sort = torch.argsort, torch.sort
    monkeypatch.setattr(torch, "argsort", lambda x, **options: argsort(x, **{**options, "stable": True}))
    monkeypatch.setattr(torch, "sort", lambda x, **options: sort(x, **{**options, "stable": True}))
    at: dict[str, Any] = {}
    merge_group = Merge.merge_group

    def named(self: Any, group: Any, /, **parameters: Any) -> Any:
        at.update(name=group.metadata.name, model=0)
        return merge_group(self, group, **parameters)

    def bernoulli(probabilities: Any) -> Any:
        kept = mo.tune.keep_mask(
            probabilities.numel(),
            float(probabilities.double().flatten()[0]),
            name=at["name"],
            model=at["model"],
            seed=SEED,
        )
        at["model"] += 1
        return torch.from_numpy(kept).to(probabilities.dtype).reshape(probabilities.shape)

    monkeypatch.setattr(Merge, "merge_group", named)
    monkeypatch.setattr(torch, "bernoulli", bernoulli)
    return module


def config_for(method: str, family: list[Path]) -> dict[str, Any]:
    """mergekit's configuration, with weights and shares that differ by layer and by tensor."""
    base, one, two, three = map(str, family)
    config: dict[str, Any] = {
        "merge_method": method,
        "base_model": base,
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }
    if method == "slerp":
        t = [{"filter": "self_attn", "value": [0, 0.4, 1]}, {"filter": "mlp", "value": 0.7}, {"value": 0.35}]
        return {**config, "models": [{"model": base}, {"model": one}], "parameters": {"t": t}}
    if method == "linear":
        del config["base_model"]
        weights = {base: 0.2, one: [0.5, 1.0], two: 0.3}
        config["models"] = [{"model": m, "parameters": {"weight": w}} for m, w in weights.items()]
        return config
    shares = {} if method == "task_arithmetic" else {"density": 0.4}
    if method.startswith("breadcrumbs"):
        shares["gamma"] = 0.05
    given = [
        (one, {"weight": 0.7, **shares}),
        (two, {"weight": [{"filter": "mlp", "value": [0.2, 0.9]}, {"value": 0.4}], **shares}),
        (three, {"weight": -0.3, **shares, **({"density": [0.1, 1.0]} if shares else {})}),
    ]
    config["models"] = [{"model": base}, *({"model": m, "parameters": p} for m, p in given)]
    config["parameters"] = {"lambda": 0.9}
    return config


def by_mergekit(mergekit: Any, config: dict[str, Any], out: Path) -> dict[str, Any]:
    from mergekit.config import MergeConfiguration
    from mergekit.options import MergeOptions

    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
    mergekit.run_merge(MergeConfiguration.model_validate(config), str(out), options)
    return tensors_of(out)


EXACT = ["task_arithmetic", "ties", "breadcrumbs", "breadcrumbs_ties"]
ROUNDED = ["linear", "slerp", "dare_linear", "dare_ties"]  # sums in another order


@pytest.mark.parametrize("method", EXACT + ROUNDED)
def test_a_configuration_of_mergekit_gives_what_mergekit_gives(
    method: str, family: list[Path], mergekit: Any, tmp_path: Path, record_property: Any
) -> None:
    config = config_for(method, family)
    expected = by_mergekit(mergekit, config, tmp_path / "theirs")
    plan = mo.tune.MergePlan.from_dict(config).to_dict()
    mo.merge({**plan, "seed": SEED}, tmp_path / "ours", threads=1)
    found = tensors_of(tmp_path / "ours")
    assert all(tensor.dtype == torch.bfloat16 for tensor in found.values())
    worst = largest_difference(found, expected)
    record_property("largest_difference", worst)
    if method in EXACT:
        assert equal(found, expected), worst
    else:
        assert worst <= STEP["bf16"]


# PEFT's ways of merging, on arrays


def deltas(count: int = 3, shape: tuple[int, ...] = (37, 53)) -> list[Any]:
    """Task tensors without two magnitudes alike: which of these are kept is not defined."""
    random = np.random.default_rng(5)
    return [random.permutation(d).astype(np.float32) for d in random.normal(0, 0.1, (count, *shape))]


@pytest.fixture
def peft(monkeypatch: pytest.MonkeyPatch) -> Any:
    """PEFT's functions, with our masks for what they drop at random."""
    module = pytest.importorskip("peft.utils.merge_utils")
    calls = iter(range(99))

    def bernoulli(probabilities: Any) -> Any:
        density = float(probabilities.double().flatten()[0])
        kept = mo.tune.keep_mask(probabilities.numel(), density, name="a", model=next(calls), seed=SEED)
        return torch.from_numpy(kept).to(probabilities.dtype).reshape(probabilities.shape)

    monkeypatch.setattr(torch, "bernoulli", bernoulli)
    return module


@pytest.mark.parametrize("density", [0.3, 0.75])
@pytest.mark.parametrize("method", ["task_arithmetic", "magnitude_prune", "ties", "dare_linear", "dare_ties"])
def test_pefts_definitions_give_what_peft_gives(
    method: str, density: float, peft: Any, record_property: Any
) -> None:
    weights, tasks = [0.7, 1.0, -0.4], deltas()
    given = {} if method == "task_arithmetic" else {"density": density}
    expected = getattr(peft, method)(list(map(torch.from_numpy, tasks)), torch.tensor(weights), **given)
    found = mo.tune.merge_arrays(
        method,  # type: ignore[arg-type]
        tasks,
        np.zeros_like(tasks[0]),
        weights=weights,
        definition="peft",
        name="a",
        seed=SEED,
        threads=1,
        **given,
    )
    worst = float(np.abs(found - expected.numpy()).max())
    record_property("largest_difference", worst)
    assert found.dtype == np.float32 and np.count_nonzero(found)
    assert worst < 1e-7  # of values to ±0.8


def test_the_share_that_peft_would_keep_of_everything_is_everything(peft: Any) -> None:
    tasks = deltas(2)
    expected = peft.task_arithmetic(list(map(torch.from_numpy, tasks)), torch.ones(2)).numpy()
    for method in ("magnitude_prune", "dare_linear"):
        found = mo.tune.merge_arrays(method, tasks, np.zeros_like(tasks[0]), definition="peft", density=1.0)
        assert np.array_equal(found, expected)


# Adapters that PEFT wrote, and ones that it reads


def write_adapter(base: Path, folder: Path, *, seed: int = 2, **options: Any) -> None:
    """A LoRA adapter with random factors."""
    import peft

    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"], **options}
    wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **options))
    for name, weight in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.1)
        elif "modules_to_save" in name:
            torch.nn.init.normal_(weight, std=0.2)
    wrapped.save_pretrained(str(folder))
    config = json.loads((folder / "adapter_config.json").read_text())
    # PEFT sorts the patterns, of which the first that fits counts: put back as they were given.
    config.update({name: value for name, value in options.items() if name.endswith("pattern")})
    (folder / "adapter_config.json").write_text(json.dumps(config))


def loaded_by_peft(base: Path, adapter: Path) -> Any:
    import peft

    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return peft.PeftModel.from_pretrained(model, str(adapter)).eval()


def merged_by_peft(base: Path, adapter: Path) -> dict[str, Any]:
    """As it would be saved: a head that is tied to the embedding is not."""
    model = loaded_by_peft(base, adapter).merge_and_unload()
    tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    return tensors


ADAPTERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all linear layers": {"target_modules": "all-linear"},
    "one rank": {"r": 1},
    "rsLoRA": {"use_rslora": True, "r": 6},
    "ranks by pattern": {"rank_pattern": {"q_proj": 7, "layers.1.mlp.down_proj": 2}},
    "alphas by pattern": {"alpha_pattern": {"q_proj": 3, "layers.1.self_attn.v_proj": 32}},
    "rsLoRA by pattern": {"rank_pattern": {"v_proj": 9}, "alpha_pattern": {"v_proj": 5}, "use_rslora": True},
    "patterns of which the first counts": {
        "alpha_pattern": {"v_proj": 3, "layers.1.self_attn.v_proj": 32, "down_proj": 5, "1.mlp.down_proj": 1}
    },
    "patterns that are expressions": {
        "alpha_pattern": {r"self_attn\..*": 3, r"layers\.\d+\.mlp\.do.*n_proj$": 30, "down": 99}
    },
    "embedding": {"target_modules": ["embed_tokens", "o_proj"]},
    "head": {"target_modules": ["lm_head", "o_proj"]},
    "whole modules": {"modules_to_save": ["lm_head", "norm"]},
}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in f32 with a head of its own."""
    return write_base(tmp_path_factory.mktemp("wide") / "base", "Qwen2", dtype="f32")


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_is_folded_in_as_peft_folds_it(kind: str, wide: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    write_adapter(wide, tmp_path / "adapter", **ADAPTERS[kind])
    expected = merged_by_peft(wide, tmp_path / "adapter")
    mo.tune.merge_lora(wide, tmp_path / "adapter", tmp_path / "out", threads=1)
    found = tensors_of(tmp_path / "out")
    assert set(found) == set(expected)
    worst = max((found[name] - expected[name]).abs().max().item() for name in expected)
    assert not equal(found, tensors_of(wide)) and worst < 5e-7


def test_an_adapter_is_folded_into_bf16_with_one_rounding(wide: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in tensors_of(wide).items()}
    base = write_like(wide, tmp_path / "base", tensors, dtype="bfloat16")
    write_adapter(base, tmp_path / "adapter")
    expected = merged_by_peft(base, tmp_path / "adapter")
    mo.tune.merge_lora(base, tmp_path / "adapter", tmp_path / "out", threads=1)
    found = tensors_of(tmp_path / "out")
    assert largest_difference(found, {n: t.to(torch.bfloat16) for n, t in expected.items()}) <= STEP["bf16"]
    rounding = {name: (found[name].float() - expected[name]).abs() for name in found}
    for name, error in rounding.items():
        assert torch.all(error <= expected[name].abs() * 2**-8 + 1e-6), name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_dora": True}, "use_dora: expected false"),
        ({"bias": "all"}, "bias: expected none"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"peft_type": "IA3"}, "peft_type: expected LORA"),
        ({"alpha_pattern": {"(q|v)_proj": 3}}, r"alpha_pattern\..\(q\|v\)_proj.: expected a pattern"),
    ],
)
def test_adapters_that_would_come_out_otherwise_are_refused(
    fields: dict[str, Any], message: str, wide: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    write_adapter(wide, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    with pytest.raises(mo.Unsupported, match=message):
        mo.tune.merge_lora(wide, tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_another_model_is_refused(wide: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    other = write_base(tmp_path / "other", "Qwen2", dtype="f32", intermediate_size=64)
    write_adapter(other, tmp_path / "adapter")
    with pytest.raises(
        mo.FormatError, match=r"down_proj.weight.*factors of the model's shape, got \[32, 64\]"
    ):
        mo.tune.merge_lora(wide, tmp_path / "adapter", tmp_path / "out")
    with pytest.raises(mo.IoError, match="a PEFT adapter"):
        mo.tune.merge_lora(wide, wide, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_part_of_an_adapter_is_a_part_of_its_update(wide: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    write_adapter(wide, tmp_path / "adapter")
    mo.tune.merge_lora(wide, tmp_path / "adapter", tmp_path / "whole")
    mo.tune.merge_lora(wide, tmp_path / "adapter", tmp_path / "half", weight=0.5)
    before, whole, half = map(tensors_of, (wide, tmp_path / "whole", tmp_path / "half"))
    assert not equal(whole, before)
    for name in before:
        assert torch.allclose(half[name] - before[name], 0.5 * (whole[name] - before[name]), atol=1e-7)


def test_merging_adapters_is_merging_the_models_that_they_make(wide: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    for i in (1, 2):
        write_adapter(wide, tmp_path / f"adapter{i}", seed=i)
        mo.tune.merge_lora(wide, tmp_path / f"adapter{i}", tmp_path / f"model{i}")
    config = {
        "merge_method": "ties",
        "base_model": str(wide),
        "models": [
            {"model": f"{wide}+{tmp_path}/adapter{i}", "parameters": {"weight": 0.5, "density": 0.6}}
            for i in (1, 2)
        ],
    }
    mo.merge(config, tmp_path / "of adapters")
    for i, model in enumerate(config["models"], start=1):
        model["model"] = str(tmp_path / f"model{i}")
    mo.merge(config, tmp_path / "of models")
    assert equal(tensors_of(tmp_path / "of adapters"), tensors_of(tmp_path / "of models"))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["Llama", "Qwen2"])
def test_what_was_tuned_is_an_adapter_that_peft_reads(kind: str, tied: bool, tmp_path: Path) -> None:
    """At full rank, norms, embedding and head with it."""
    pytest.importorskip("peft")
    base = write_base(tmp_path / "base", kind, dtype="f32", tie_word_embeddings=tied)
    tuned = write_tuned(base, tmp_path / "tuned", 4)
    if kind == "Qwen2":  # biases have no place in an adapter
        tensors = {n: t if n.endswith("bias") else tensors_of(tuned)[n] for n, t in tensors_of(base).items()}
        tuned = write_like(base, tmp_path / "unbiased", tensors)
    report = mo.tune.extract_lora(base, tuned, tmp_path / "adapter", rank=64, threads=1)
    assert report.error < 1e-6 and len(report.modules) == 21 and not report.dropped
    assert len(report.whole) == 9  # norms, embedding and head
    ids = np.random.default_rng(0).integers(0, 160, 40).tolist()
    expected = logits_of(transformers_model(tuned), ids)
    assert np.abs(expected - logits_of(transformers_model(base), ids)).max() > 0.1
    found = logits_of(loaded_by_peft(base, tmp_path / "adapter"), ids)
    assert np.abs(found - expected).max() < 1e-4
    mo.tune.merge_lora(base, tmp_path / "adapter", tmp_path / "again", threads=1)
    assert largest_difference(tensors_of(tmp_path / "again"), tensors_of(tuned)) < 1e-2


def test_smaller_ranks_lose_what_the_report_says(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    base = write_base(tmp_path / "base", dtype="f32")
    generator = torch.Generator().manual_seed(0)

    def update(name: str, tensor: Any) -> Any:
        if not name.endswith("_proj.weight"):
            return tensor
        rank = 2 if "layers.0" in name else 6
        rows, cols = tensor.shape
        b, a = (torch.randn(s, generator=generator) for s in ((rows, rank), (rank, cols)))
        return tensor + 0.02 * b @ a

    tuned = write_like(base, tmp_path / "tuned", changed(tensors_of(base), update))
    report = mo.tune.extract_lora(base, tuned, tmp_path / "adapter", rank=16, error=1e-3, threads=1)
    assert {m.rank for m in report.modules if "layers.0" in m.module} == {2}
    assert {m.rank for m in report.modules if "layers.0" not in m.module} == {6}
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 6 and set(config["rank_pattern"].values()) == {2}
    expected, found = tensors_of(tuned), merged_by_peft(base, tmp_path / "adapter")
    assert max((found[n] - expected[n]).abs().max().item() for n in expected) < 1e-5
    report = mo.tune.extract_lora(base, tuned, tmp_path / "small", rank=4, threads=1)
    found, before = merged_by_peft(base, tmp_path / "small"), tensors_of(base)
    for module in report.modules:
        name = module.module + ".weight"
        change = (expected[name] - before[name]).double()
        lost = (expected[name] - found[name]).double().norm() / change.norm()
        assert module.size == pytest.approx(change.norm().item(), rel=1e-5)
        assert module.errors[-1] == pytest.approx(lost.item(), abs=1e-5)
        values = torch.linalg.svdvals(change)
        assert lost == pytest.approx((values[4:].norm() / values.norm()).item(), abs=1e-5)
