# SPDX-License-Identifier: Apache-2.0
"""Quantised checkpoints made and read by compressed-tensors itself, for the tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
    apply_quantization_config,
)
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.numpy import load_file

torch.set_num_threads(1)  # models this small only wait for the others

SIZES = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}

# How far logits move when the inputs of linear layers are rounded to int8 by groups of 32, on the random
# models here: 0.019 to 0.031, in float32 or with keys and values in bf16.
ROUNDED_INPUTS = 0.04
IDS = np.random.default_rng(3).integers(0, SIZES["vocab_size"], 100).tolist()


def write_model(folder: Path, kind: str = "Llama", dtype: Any = torch.float32, **fields: Any) -> Path:
    """A checkpoint of random weights with the spread of trained ones, logits of about ±3."""
    torch.manual_seed(1)
    config = getattr(transformers, kind + "Config")(**{**SIZES, **fields})
    model = transformers.AutoModelForCausalLM.from_config(config)
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=0.12)
        else:
            torch.nn.init.normal_(weight, mean=1.0 if "norm" in name else 0.0, std=0.1)
    model.tie_weights()
    model.to(dtype).save_pretrained(folder)
    return folder


def compress(
    source: Path,
    out: Path,
    weights: dict[str, Any],
    activations: dict[str, Any] | None = None,
    ignore: Iterable[str] = ("lm_head",),
    **fields: Any,
) -> Path:
    """Rounds to nearest by compressed-tensors' own scales and writes the checkpoint with its own code."""
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    scheme = QuantizationScheme(
        targets=["Linear"],
        weights=QuantizationArgs(**weights),
        input_activations=QuantizationArgs(**activations) if activations else None,
    )
    config = QuantizationConfig(config_groups={"group_0": scheme}, ignore=list(ignore))
    apply_quantization_config(model, config, show_progress=False)
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is None:
            continue
        values = module.weight.detach().unflatten(1, (-1, weights.get("group_size", module.weight.shape[1])))
        scale, zero = calculate_qparams(values.amin(-1), values.amax(-1), scheme.weights)
        module.weight_scale.data.copy_(scale)
        module.weight_zero_point.data.copy_(zero)
        module.quantization_status = QuantizationStatus.FROZEN
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(out)
    compressor.update_config(out)
    return out


def transformers_model(folder: Path) -> Any:
    """As transformers loads it in float32, decompressed by compressed-tensors."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.inference_mode():
        model(torch.tensor([[1]]))  # the first pass decompresses
    for module in model.modules():
        module.quantization_enabled = False  # weights stay what they are; inputs are not rounded by token
    return model


def linear_weights(model: Any) -> dict[str, Any]:
    """The weight of every quantised layer of a transformers model."""
    return {
        name: module.weight.detach().numpy()
        for name, module in model.named_modules()
        if getattr(module, "quantization_scheme", None) is not None
    }


def stored_weights(folder: Path, bits: int) -> dict[str, Any]:
    """integers · scales of every packed layer, read from the file in a few lines of our own."""
    tensors = load_file(folder / "model.safetensors")
    weights = {}
    for name, packed in tensors.items():
        if not name.endswith(".weight_packed"):
            continue
        module = name.removesuffix(".weight_packed")
        unsigned = packed.view(np.uint8)
        if bits == 4:
            unsigned = np.stack([unsigned & 15, unsigned >> 4], axis=-1)
        integers = unsigned.reshape(len(packed), -1).astype(np.float32) - 2 ** (bits - 1)
        scales = tensors[module + ".weight_scale"].astype(np.float32)
        group = integers.shape[1] // scales.shape[1]
        weights[module] = integers * np.repeat(scales, group, axis=1)
    return weights


def round_inputs(model: Any) -> Any:
    """Lets quantised layers round their inputs as modicum does: to int8 with a scale for each 32, or for all
    of a token where the scheme says so."""

    def hook(module: Any, inputs: tuple[Any, ...]) -> Any:
        whole = module.quantization_scheme.input_activations is not None
        groups = inputs[0].unflatten(-1, (-1, inputs[0].shape[-1] if whole else 32))
        largest = groups.abs().amax(-1, keepdim=True)
        inverse = torch.where(largest > 0, 127.0 / largest, torch.zeros_like(largest))
        return ((groups * inverse).round() * (largest / 127.0)).flatten(-2)

    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            module.register_forward_pre_hook(hook)
    return model


def logits_of(model: Any, ids: Sequence[int]) -> Any:
    with torch.inference_mode():
        return model(torch.tensor([list(ids)])).logits[0].numpy()


def relative_error(actual: Any, expected: Any) -> float:
    """Root mean square of the difference over that of `expected`."""
    difference = np.asarray(actual, np.float64) - np.asarray(expected, np.float64)
    return float(np.sqrt(np.mean(difference**2) / np.mean(np.asarray(expected, np.float64) ** 2)))


def perplexity(logits: Callable[[list[int]], Any], ids: Sequence[int], window: int) -> float:
    """exp of the mean negative log-likelihood, in windows that do not overlap."""
    total, count = 0.0, 0
    for begin in range(0, len(ids) - 1, window):
        part = list(ids[begin : begin + window])
        if len(part) < 2:
            continue
        scores = torch.from_numpy(np.asarray(logits(part[:-1]))).double()
        total += float(torch.nn.functional.cross_entropy(scores, torch.tensor(part[1:]), reduction="sum"))
        count += len(part) - 1
    return float(np.exp(total / count))


def check_logits(ours: Any, theirs: Any) -> None:
    """Most short prompts get transformers' logits, all prompts those that rounded inputs explain."""
    exact = logits_of(theirs, IDS)
    round_inputs(theirs)
    prompts = [IDS[i : i + 3] for i in range(0, 96, 3)]
    errors = sorted(relative_error(ours.logits(prompt), logits_of(theirs, prompt)) for prompt in prompts)
    assert errors[len(errors) * 3 // 4] < 1e-5
    rounding = relative_error(logits_of(theirs, IDS), exact)
    assert 0.005 < rounding < ROUNDED_INPUTS
    assert relative_error(ours.logits(IDS), exact) < ROUNDED_INPUTS
    assert relative_error(ours.logits(IDS), logits_of(theirs, IDS)) < rounding
