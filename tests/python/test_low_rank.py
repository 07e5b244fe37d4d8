# SPDX-License-Identifier: Apache-2.0
"""Layers of two factors: what they lose, and that modicum and transformers run them alike."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

mo = pytest.importorskip("modicum")
np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.numpy import load_file, save_file  # noqa: E402
from tiny import write_tokenizer  # noqa: E402

torch.set_num_threads(1)

IDS = np.random.default_rng(5).integers(0, 150, 80).tolist()
MODULES = {"re:.*0\\.mlp\\.up_proj": 9, "re:.*_proj$": 11, "model.layers.1.mlp.down_proj": 40}


def write_model(folder: Path, kind: str) -> Path:
    config = getattr(transformers, kind + "Config")(
        vocab_size=258,
        hidden_size=40,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        max_position_embeddings=256,
        initializer_range=0.25,
        tie_word_embeddings=False,
    )
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    for name, parameter in model.named_parameters():
        if name.endswith("_proj.bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def rank_of(modules: dict[str, int], name: str) -> int | None:
    """By hand, for the names above."""
    if name in modules:
        return modules[name]
    if name == "model.layers.0.mlp.up_proj":
        return modules.get("re:.*0\\.mlp\\.up_proj")
    return modules.get("re:.*_proj$") if name.endswith("_proj") else None


def factorised(source: Path, out: Path, modules: dict[str, int]) -> Path:
    """`source` with factors, and beside it a directory of the same function with their products."""
    gram = {}
    factors, products = load_file(source / "model.safetensors"), load_file(source / "model.safetensors")
    for key in list(factors):
        name = key.removesuffix(".weight")
        rank = rank_of(modules, name)
        if rank is None or factors[key].ndim != 2:
            continue
        weight = factors.pop(key)
        inputs = weight.shape[1]
        x = np.random.default_rng(inputs).normal(size=(3 * inputs, inputs))
        gram.setdefault(inputs, x.T @ x)
        u, v, _ = mo.retrofit.low_rank(weight, gram[inputs], rank=rank)
        factors[f"{name}.weight_u"], factors[f"{name}.weight_v"] = u.astype("f4"), v.astype("f4")
        products[key] = (u @ v).astype("f4")
    config = json.loads((source / "config.json").read_text())
    for folder, tensors in ((out, factors), (out.with_name(out.name + "-products"), products)):
        folder.mkdir()
        save_file(
            {n: np.ascontiguousarray(t) for n, t in tensors.items()},
            folder / "model.safetensors",
            metadata={"format": "pt"},
        )
        (folder / "config.json").write_text(json.dumps(config))
        write_tokenizer(folder)
    (out / "config.json").write_text(json.dumps({**config, "modicum": {"low_rank": {"modules": modules}}}))
    return out


def relative(actual: Any, expected: Any) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def theirs(folder: Path) -> Any:
    mo.interop.register()
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits_of(model: Any) -> Any:
    with torch.inference_mode():
        return model(torch.tensor([IDS])).logits[0].numpy()


@pytest.mark.parametrize("kind", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_modicum_and_transformers_run_two_factors_as_their_product(kind: str, tmp_path: Path) -> None:
    source = write_model(tmp_path / "in", kind)
    for number, modules in enumerate((MODULES, {"model.layers.0.self_attn.k_proj": 5})):
        folder = factorised(source, tmp_path / f"out{number}", modules)
        expected = mo.load(f"{folder}-products", dtype="f32").logits(IDS)
        ours = mo.load(folder, dtype="f32").logits(IDS)
        assert relative(ours, expected) < 1e-4
        assert relative(logits_of(theirs(folder)), ours) < 1e-4
        whole = mo.load(source, dtype="f32")
        assert mo.load(folder).multiply_adds_per_token < whole.multiply_adds_per_token
        assert len({m.fingerprint for m in (whole, mo.load(folder), mo.load(f"{folder}-products"))}) == 3
        assert relative(whole.logits(IDS), expected) > 1e-3, "the factors change the model"


def test_a_token_is_the_same_whatever_is_read_with_it(tmp_path: Path) -> None:
    folder = factorised(write_model(tmp_path / "in", "Llama"), tmp_path / "out", MODULES)
    for dtype in ("f32", "bf16"):
        model = mo.load(folder, dtype=dtype, threads=2)
        whole = model.logits(IDS)
        assert np.array_equal(whole[:7], model.logits(IDS[:7]))


def test_models_without_factors_are_made_by_the_classes_that_made_them_before(tmp_path: Path) -> None:
    source = write_model(tmp_path / "in", "Qwen2")
    assert type(theirs(source)) is transformers.Qwen2ForCausalLM
    config = transformers.AutoConfig.from_pretrained(source)
    made = transformers.AutoModelForCausalLM.from_config(config)
    assert type(made) is transformers.Qwen2ForCausalLM


def test_what_transformers_saves_of_factors_loads_again(tmp_path: Path) -> None:
    folder = factorised(write_model(tmp_path / "in", "Llama"), tmp_path / "out", MODULES)
    model = theirs(folder)
    model.save_pretrained(tmp_path / "saved")
    assert np.array_equal(logits_of(theirs(tmp_path / "saved")), logits_of(model))
    saved = mo.load(tmp_path / "saved", dtype="f32")
    assert np.array_equal(saved.logits(IDS), mo.load(folder, dtype="f32").logits(IDS))


def test_quantising_factors_is_refused(tmp_path: Path) -> None:
    folder = factorised(write_model(tmp_path / "in", "Llama"), tmp_path / "out", MODULES)
    with pytest.raises(mo.Unsupported, match="low rank"):
        mo.retrofit.quantize(folder, tmp_path / "int8")


def test_a_rank_other_than_that_of_the_tensors_is_refused(tmp_path: Path) -> None:
    folder = factorised(write_model(tmp_path / "in", "Llama"), tmp_path / "out", MODULES)
    config = json.loads((folder / "config.json").read_text())
    config["modicum"]["low_rank"]["modules"]["model.layers.1.mlp.down_proj"] = 39
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(mo.FormatError, match=r"down_proj\.weight_v"):
        mo.load(folder)


def test_importing_modicum_changes_nothing_in_transformers() -> None:
    code = "import modicum, sys; assert 'transformers' not in sys.modules and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_two_factors_lose_what_is_reported_and_less_than_those_of_the_weights_alone() -> None:
    random = np.random.default_rng(1)
    weight = random.normal(size=(30, 50))
    x = random.normal(size=(200, 50)) @ random.normal(size=(50, 50)) * 0.9 ** np.arange(50)
    gram = x.T @ x / 200
    u, v, loss = mo.retrofit.low_rank(weight, gram, rank=12)
    assert u.shape == (30, 12) and v.shape == (12, 50)

    def lost(approximation: Any) -> float:
        d = weight - approximation
        return float(np.trace(d @ gram @ d.T) / np.trace(weight @ gram @ weight.T))

    assert loss == pytest.approx(lost(u @ v), rel=1e-9)
    squares = np.linalg.svd(weight @ np.linalg.cholesky(gram), compute_uv=False) ** 2
    assert loss == pytest.approx(squares[12:].sum() / squares.sum(), rel=1e-9)
    left, values, right = np.linalg.svd(weight)
    assert loss < 0.8 * lost(left[:, :12] * values[:12] @ right[:12])
    for options in ({"rank": 0}, {"rank": 31}, {"rank": 2, "damping": -1.0}):
        with pytest.raises(mo.InvalidArgument):
            mo.retrofit.low_rank(weight, gram, **options)
    with pytest.raises(mo.InvalidArgument, match="gram"):
        mo.retrofit.low_rank(weight, gram[:20, :20], rank=2)
