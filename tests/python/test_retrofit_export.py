# SPDX-License-Identifier: Apache-2.0
"""Retrofitted checkpoints in llama.cpp: through GGUF with its own writer, read by its own library."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

mo = pytest.importorskip("modicum")
torch = pytest.importorskip("torch")
pytest.importorskip("compressed_tensors")
pytest.importorskip("gguf", reason="the gguf package is absent")
pytest.importorskip("llama_cpp", reason="llama-cpp-python is absent")

from modicum.retrofit import Depth, Ffn, Kv, Plan  # noqa: E402
from quantized import IDS, relative_error  # noqa: E402
from retrofitted import config_of, random_text, retrofit, write_source  # noqa: E402

sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "compare"))
from peers.engine import Setup  # noqa: E402
from peers.llama_cpp_engine import LlamaCpp, write_bf16  # noqa: E402
from peers.shapes import Shape  # noqa: E402

PLANS = {
    "nothing": Plan(),
    "kv": Plan(kv=Kv(2)),
    "ffn": Plan(ffn=Ffn(128)),
    "kv-ffn-depth": Plan(kv=Kv(1), ffn=Ffn(128), depth=Depth(1)),
}


def setup_of(folder: Path) -> Setup:
    config = config_of(folder)
    shape = Shape(
        name=folder.name,
        model_type=config["model_type"],
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        num_hidden_layers=config["num_hidden_layers"],
        num_attention_heads=config["num_attention_heads"],
        num_key_value_heads=config["num_key_value_heads"],
        intermediate_size=config["intermediate_size"],
        rope_theta=config["rope_parameters"]["rope_theta"],
    )
    return Setup(shape, folder, threads=1, context=256)


@pytest.mark.parametrize("kind", ["Llama", "Qwen2"])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
def test_llama_cpp_computes_what_modicum_does_of_a_retrofit(plan: Plan, kind: str, tmp_path: Path) -> None:
    source = write_source(tmp_path / "in", kind, torch.bfloat16, tie_word_embeddings=True)
    retrofit(source, tmp_path / "out", plan, calibration=random_text())
    setup = setup_of(tmp_path / "out")
    write_bf16(setup, tmp_path / "model.gguf")
    theirs = LlamaCpp(tmp_path / "model.gguf", setup)
    model = mo.load(tmp_path / "out", dtype="f32", threads=1)
    for length in (1, 7, 64):
        ours = model.logits(IDS[:length])[-1]
        # llama.cpp rounds the inputs of its products, keys and values to bf16 and f16.
        assert relative_error(theirs.logits(IDS[:length]), ours) < 0.03
    changed = mo.load(source, dtype="f32", threads=1).logits(IDS[:64])[-1]
    assert (relative_error(changed, ours) > 0.1) == bool(plan)
