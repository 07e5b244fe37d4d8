# SPDX-License-Identifier: Apache-2.0
"""Logits equal transformers' on random checkpoints of every family, config switch, dtype and file layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

mo = pytest.importorskip("modicum")
np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

torch.set_num_threads(1)  # models this small only wait for the others

SIZES = {
    "vocab_size": 200,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LINEAR = {"rope_type": "linear", "factor": 4.0}
LENGTH = 260  # past every window and every original context


def _config(kind: str, **fields: Any) -> Any:
    return getattr(transformers, kind + "Config")(**{**SIZES, **fields})


CASES: dict[str, Callable[[], Any]] = {
    "llama2": lambda: _config("Llama", num_key_value_heads=8, tie_word_embeddings=False),
    "llama-grouped-tied": lambda: _config("Llama", tie_word_embeddings=True, rope_theta=500000.0),
    "llama-biases-head-dim": lambda: _config("Llama", attention_bias=True, mlp_bias=True, head_dim=20),
    "llama-eps-odd-sizes": lambda: _config(
        "Llama",
        hidden_size=36,
        intermediate_size=50,
        num_attention_heads=3,
        num_key_value_heads=1,
        rms_norm_eps=1e-3,
    ),
    "llama3-rope": lambda: _config("Llama", rope_scaling=dict(LLAMA3)),
    "llama-linear-rope": lambda: _config("Llama", rope_scaling=dict(LINEAR)),
    "llama-yarn-rope": lambda: _config("Llama", rope_scaling=dict(YARN)),
    "smollm": lambda: _config(
        "Llama", hidden_size=72, num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True
    ),
    "mistral-window": lambda: _config("Mistral", sliding_window=33),
    "mistral-no-window": lambda: _config("Mistral", sliding_window=None, head_dim=16),
    "qwen2": lambda: _config("Qwen2", tie_word_embeddings=True),
    "qwen2-window": lambda: _config("Qwen2", use_sliding_window=True, sliding_window=40, max_window_layers=1),
    "qwen2-yarn": lambda: _config("Qwen2", rope_scaling=dict(YARN), rope_theta=1e6),
    "qwen3": lambda: _config("Qwen3", head_dim=24),
    "qwen3-tied": lambda: _config("Qwen3", head_dim=16, tie_word_embeddings=True, attention_bias=True),
}


def write(config: Any, folder: Path, dtype: Any = torch.float32, **options: Any) -> Path:
    """A checkpoint with random weights, large enough that logits differ by far more than rounding."""
    torch.manual_seed(len(folder.name))
    model = transformers.AutoModelForCausalLM.from_config(config)
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=0.15)
        else:
            torch.nn.init.normal_(weight, mean=1.0 if "norm" in name else 0.0, std=0.2)
    model.tie_weights()
    model.to(dtype).save_pretrained(folder, **options)
    return folder


def tokens(length: int = LENGTH, vocabulary: int = SIZES["vocab_size"]) -> list[int]:
    return np.random.default_rng(7).integers(0, vocabulary, length).tolist()


def reference(folder: Path, ids: list[int], dtype: Any = torch.float32) -> Any:
    """transformers' logits; loading in `dtype` keeps rotary frequencies in float32, which `.to` rounds."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager"
    ).eval()
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].float().numpy()


def check_f32(folder: Path, ids: list[int]) -> None:
    theirs = reference(folder, ids)
    ours = mo.load(folder, dtype="f32").logits(ids)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


def rms(x: Any) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


@pytest.mark.parametrize("case", CASES)
def test_f32_logits_equal_transformers(case: str, tmp_path: Path) -> None:
    check_f32(write(CASES[case](), tmp_path / case), tokens())


@pytest.mark.parametrize("case", CASES)
def test_bf16_logits_are_no_further_from_f32_than_those_of_transformers(case: str, tmp_path: Path) -> None:
    folder = write(CASES[case](), tmp_path / case, torch.bfloat16)
    exact = reference(folder, tokens())
    model = mo.load(folder)
    assert model.dtype == "bf16"
    assert rms(model.logits(tokens()) - exact) <= rms(reference(folder, tokens(), torch.bfloat16) - exact)


@pytest.mark.parametrize("case", ["llama-biases-head-dim", "mistral-window", "qwen2-window", "qwen3"])
def test_f16_logits_are_no_further_from_f32_than_those_of_transformers(case: str, tmp_path: Path) -> None:
    folder = write(CASES[case](), tmp_path / case, torch.float16)
    exact = reference(folder, tokens())
    model = mo.load(folder)
    assert model.dtype == "f16"
    assert rms(model.logits(tokens()) - exact) <= rms(reference(folder, tokens(), torch.float16) - exact)


@pytest.mark.parametrize(
    "scaling", [None, LLAMA3, LINEAR, YARN], ids=["standard", "llama3", "linear", "yarn"]
)
@pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling", "rope_scaling-type"])
def test_both_spellings_of_rope_mean_the_same(
    scaling: dict[str, Any] | None, spelling: str, tmp_path: Path
) -> None:
    folder = write(
        _config("Llama", rope_theta=300000.0, rope_scaling=scaling and dict(scaling)), tmp_path / "model"
    )
    expected = reference(folder, tokens())
    config = json.loads((folder / "config.json").read_text())
    for name in ("rope_parameters", "rope_scaling", "rope_theta"):
        config.pop(name, None)
    if spelling == "rope_parameters":
        config["rope_parameters"] = {"rope_type": "default", **(scaling or {}), "rope_theta": 300000.0}
    else:
        old = dict(scaling) if scaling else None
        if old and spelling == "rope_scaling-type":
            old["type"] = old.pop("rope_type")
        config |= {"rope_theta": 300000.0, "rope_scaling": old}
    (folder / "config.json").write_text(json.dumps(config))
    ours = mo.load(folder).logits(tokens())
    assert np.abs(ours - expected).max() <= 1e-4 * np.abs(expected).max()


def test_shards_give_the_logits_of_one_file(tmp_path: Path) -> None:
    config = _config("Qwen2", tie_word_embeddings=False)
    whole = write(config, tmp_path / "one00")
    sharded = write(config, tmp_path / "many0", max_shard_size="100KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 2
    check_f32(sharded, tokens())
    assert np.array_equal(mo.load(whole).logits(tokens()), mo.load(sharded).logits(tokens()))


@pytest.mark.parametrize("name", ["stories260K", "babyllama-361"])
def test_logits_of_stored_models_equal_transformers(name: str, data: Path) -> None:
    folder = data / "models" / name
    if not folder.is_dir():
        pytest.skip(f"{name} is not in MODICUM_DATA")
    config = json.loads((folder / "config.json").read_text())
    check_f32(folder, tokens(min(200, config["max_position_embeddings"]), config["vocab_size"]))
