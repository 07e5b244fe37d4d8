# SPDX-License-Identifier: Apache-2.0
"""Small models to retrofit, text to do it with, and what every output has to be."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import modicum as mo
import numpy as np
import torch
import transformers
from modicum.retrofit import Calibration, Plan
from quantized import IDS, SIZES, logits_of, relative_error, round_inputs, transformers_model, write_model
from safetensors import safe_open

SHAPE = {"num_hidden_layers": 3, "num_key_value_heads": 4, "num_attention_heads": 4, "intermediate_size": 192}
REPORTS = ("retrofit.json", "retrofit.html")


def write_source(folder: Path, kind: str = "Llama", dtype: Any = torch.float32, **fields: Any) -> Path:
    """Three layers with four KV heads and 192 inner channels; heads and embedding of one matrix or two."""
    write_model(folder, kind, dtype, **{**SHAPE, **fields})
    (folder / "tokenizer.json").write_text('{"not": "read"}')
    return folder


def calibration_of(ids: Any, held_out: int) -> Calibration:
    """Token ids [sequences, length], of which the last ones are held out."""
    ids = np.ascontiguousarray(ids, np.int32)
    return Calibration(ids[:-held_out], ids[-held_out:], sources=[], bos=[], seed=0)


def random_text(
    sequences: int = 14, length: int = 48, vocabulary: int = SIZES["vocab_size"], seed: int = 7
) -> Calibration:
    """Random tokens, a quarter of the sequences held out."""
    ids = np.random.default_rng(seed).integers(0, vocabulary, (sequences, length))
    return calibration_of(ids, max(1, sequences // 4))


def retrofit(source: Path, out: Path, plan: Plan, **options: Any) -> Any:
    options.setdefault("calibration", random_text())
    return mo.retrofit.run(source, out, plan, **{"evaluate": False, "threads": 1, **options})


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def tensors_of(folder: Path) -> dict[str, Any]:
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 – safe_open is no dict
                tensors[name] = opened.get_tensor(name)
    return tensors


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file but the report."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name not in REPORTS
    }


def layers_of(names: Any) -> set[int]:
    return {int(name.split(".")[2]) for name in names if name.startswith("model.layers.")}


def check_config(folder: Path) -> dict[str, Any]:
    """What vLLM and transformers want of a config.json."""
    config = config_of(folder)
    layers = config["num_hidden_layers"]
    assert config["num_attention_heads"] % config["num_key_value_heads"] == 0
    assert layers_of(tensors_of(folder)) == set(range(layers))
    if "layer_types" in config:
        assert len(config["layer_types"]) == layers
        assert set(config["layer_types"]) <= {"full_attention", "sliding_attention"}
    if "quantization_config" in config:
        check_quantization(config["quantization_config"], folder)
    return config


def check_quantization(config: dict[str, Any], folder: Path) -> None:
    """compressed-tensors' fields, and a scheme or an exception for every linear layer."""
    assert config["quant_method"] == "compressed-tensors"
    assert config["quantization_status"] == "compressed"
    assert config["format"] in ("pack-quantized", "int-quantized", "mixed-precision")
    for group in config["config_groups"].values():
        weights = group["weights"]
        assert weights["num_bits"] in (4, 8) and weights["type"] == "int" and weights["symmetric"]
        assert weights["strategy"] in ("group", "channel")
        assert (weights["strategy"] == "group") == bool(weights.get("group_size"))
        assert group["targets"]
    stored = tensors_of(folder)
    for name in config["ignore"]:
        assert name + ".weight_scale" not in stored


def check_output(folder: Path) -> Any:
    """It loads in transformers whole, and modicum computes what transformers does. Returns the logits."""
    config = check_config(folder)
    if "quantization_config" in config:
        theirs = transformers_model(folder)
        exact = logits_of(theirs, IDS)
        ours = mo.load(folder, threads=1).logits(IDS)
        round_inputs(theirs)
        rounding = relative_error(logits_of(theirs, IDS), exact)
        assert 0 < rounding < 0.1
        prompts = [IDS[i : i + 3] for i in range(0, 48, 3)]
        model = mo.load(folder, threads=1)
        errors = sorted(relative_error(model.logits(p), logits_of(theirs, p)) for p in prompts)
        assert errors[len(errors) // 2] < 1e-5
        assert relative_error(ours, logits_of(theirs, IDS)) < rounding
        return ours
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), loading
    ours = mo.load(folder, dtype="f32", threads=1).logits(IDS)
    assert relative_error(ours, logits_of(model.eval(), IDS)) < 2e-5
    return ours
