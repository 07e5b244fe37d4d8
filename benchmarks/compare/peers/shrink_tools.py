# SPDX-License-Identifier: Apache-2.0
"""Tools from PyPI that shrink a model, called as their documentation says, on the same ids as everybody.

They run in an interpreter of their own (requirements-shrink.txt). Linear layers but the head become symmetric
integers with a scale for each group of columns; layers whose columns the group does not divide stay as they
are, as modicum leaves them.

On a machine without a GPU llm-compressor 0.14.0.1's AWQ ends asking for NVIDIA's driver, which its row then
says; its GPTQ and mergekit run. AutoRound 0.15.1 learns for minutes where the others take seconds.

GPTQModel is not among them: 7.7.0 installs, but asks for a newer torch than llm-compressor 0.14 allows, so
that the two have no environment in common, and its method is what llm-compressor's GPTQ computes too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[[dict[str, Any]], None]


def load(who: str, threads: int) -> Run:
    tools: dict[str, Callable[[], Run]] = {
        "llm-compressor": llm_compressor,
        "auto-round": auto_round,
        "mergekit": mergekit,
    }
    import torch

    torch.set_num_threads(threads)
    return tools[who]()


def _config(request: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(request["source"]) / "config.json").read_text("utf-8"))
    return found


def undivided(config: dict[str, Any], group: int) -> list[str]:
    """Kinds of linear layers whose columns are no multiple of `group`."""
    heads = config["num_attention_heads"] * (
        config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    )
    columns = {
        "q_proj": config["hidden_size"],
        "k_proj": config["hidden_size"],
        "v_proj": config["hidden_size"],
        "o_proj": heads,
        "gate_proj": config["hidden_size"],
        "up_proj": config["hidden_size"],
        "down_proj": config["intermediate_size"],
    }
    return [name for name, size in columns.items() if size % group]


def _part(name: str) -> str:
    return "self_attn" if name in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"


def _ids(request: dict[str, Any]) -> Any:
    import numpy as np

    return np.load(request["ids"])


def _read(request: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(request["source"], dtype="auto").eval()


def llm_compressor() -> Run:
    """oneshot with GPTQModifier, or AWQModifier and rounding to nearest, and their default options."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    def run(request: dict[str, Any]) -> None:
        ask, ids = request["ask"], _ids(request)
        weights = QuantizationArgs(
            num_bits=ask["bits"], type="int", symmetric=True, strategy="group", group_size=ask["group"]
        )
        groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
        ignore = ["lm_head", *(f"re:.*{name}" for name in undivided(_config(request), ask["group"]))]
        if ask["call"] == "gptq":
            recipe: list[Any] = [GPTQModifier(config_groups=groups, ignore=ignore)]
        else:
            recipe = [
                AWQModifier(),
                QuantizationModifier(config_groups=groups, ignore=ignore),
            ]
        rows = Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": (ids * 0 + 1).tolist()})
        model = oneshot(
            model=_read(request),
            dataset=rows,
            recipe=recipe,
            num_calibration_samples=len(ids),
            max_seq_length=ids.shape[1],
            shuffle_calibration_samples=False,
        )
        model.save_pretrained(request["out"], save_compressed=True)

    return run


def auto_round() -> Run:
    """AutoRound with its default 200 iterations; rounding is learnt by signed gradients, block by block."""
    import torch
    import transformers
    from auto_round import AutoRound

    def run(request: dict[str, Any]) -> None:
        ask, ids = request["ask"], _ids(request)
        tokenizer = transformers.AutoTokenizer.from_pretrained(request["source"])
        config = _config(request)
        layers = {
            f"model.layers.{at}.{_part(name)}.{name}": {"bits": 16, "data_type": "float"}
            for at in range(config["num_hidden_layers"])
            for name in undivided(config, ask["group"])
        }
        rounding = AutoRound(
            _read(request),
            tokenizer,
            scheme={
                "bits": ask["bits"],
                "group_size": ask["group"],
                "sym": True,
                "data_type": "int",
                "act_bits": 16,
            },
            layer_config=layers or None,
            dataset=[{"input_ids": row[None]} for row in torch.from_numpy(ids).long()],
            nsamples=len(ids),
            seqlen=ids.shape[1],
            device_map="cpu",
            enable_torch_compile=False,  # its compiler takes longer than all else on models this small
        )
        rounding.quantize_and_save(request["out"], format="fake")

    return run


def mergekit() -> Run:
    """A passthrough merge of the slices before and after the layers that go."""
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    def run(request: dict[str, Any]) -> None:
        first, count = request["ask"]["first"], request["ask"]["count"]
        layers = _config(request)["num_hidden_layers"]
        spans = [span for span in ([0, first], [first + count, layers]) if span[0] < span[1]]
        slices = [{"sources": [{"model": request["source"], "layer_range": span}]} for span in spans]
        dtype = _config(request).get("dtype") or _config(request).get("torch_dtype")
        config = {"slices": slices, "merge_method": "passthrough", "dtype": dtype}
        merged = MergeConfiguration.model_validate(yaml.safe_load(yaml.safe_dump(config)))
        run_merge(merged, request["out"], MergeOptions(copy_tokenizer=False, cuda=False))

    return run
