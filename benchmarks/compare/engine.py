#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Load time, prefill and decode tokens/s beside transformers, interleaved in one run.

The model has Qwen2.5-0.5B's shape and random bf16 weights, so this says nothing about quality. It is written
once into --folder. transformers runs in bf16 and in f32 on the same weights. First both must agree: modicum's
logits may be no further (in root mean square) from transformers' f32 logits than twice transformers' own bf16
logits are.

    python benchmarks/compare/engine.py --threads 2 --repeat 5 --json engine.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import modicum as mo
import numpy as np
import torch
import transformers

SHAPE = {
    "vocab_size": 151936,
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
}
Run = Callable[[list[int], list[int]], dict[str, float]]


def checkpoint(folder: Path) -> Path:
    """The random checkpoint, written where it is not there yet."""
    if not (folder / "config.json").is_file():
        torch.manual_seed(0)
        config = transformers.Qwen2Config(**SHAPE)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(folder)
    return folder


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result


def modicum_run(model: Any) -> Run:
    def run(prompt: list[int], rest: list[int]) -> dict[str, float]:
        def prefill() -> Any:
            leaf = model.tree().extend(prompt)
            leaf.logits()
            return leaf

        def decode() -> None:
            nonlocal leaf
            for token in rest:
                leaf = leaf.extend([token])
                leaf.logits()

        first, leaf = timed(prefill)
        return {"prefill": len(prompt) / first, "decode": len(rest) / timed(decode)[0]}

    return run


def transformers_run(model: Any) -> Run:
    def step(ids: list[int], past: Any) -> Any:
        output = model(torch.tensor([ids]), past_key_values=past, use_cache=True, logits_to_keep=1)
        return output.past_key_values

    @torch.inference_mode()
    def run(prompt: list[int], rest: list[int]) -> dict[str, float]:
        def decode() -> None:
            nonlocal past
            for token in rest:
                past = step([token], past)

        first, past = timed(lambda: step(prompt, None))
        return {"prefill": len(prompt) / first, "decode": len(rest) / timed(decode)[0]}

    return run


def check(ours: Any, theirs: dict[str, Any], ids: list[int]) -> dict[str, float]:
    """Raises where the logits of `ids` differ by more than bf16 explains."""
    with torch.inference_mode():
        exact, rounded = (
            theirs[name](torch.tensor([ids])).logits[0].float().numpy() for name in ("f32", "bf16")
        )

    def error(logits: Any) -> float:
        return float(np.sqrt(np.mean(np.square(logits - exact))) / np.sqrt(np.mean(np.square(exact))))

    errors = {"modicum": error(ours.logits(ids)), "transformers bf16": error(rounded)}
    if errors["modicum"] > 2 * errors["transformers bf16"]:
        raise SystemExit(f"the logits differ: {errors}")
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(os.environ.get("XDG_CACHE_HOME", tempfile.gettempdir())) / "modicum-qwen2.5-0.5b-shape"
    parser.add_argument("--folder", type=Path, default=default, help="where the checkpoint is or will be")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--prompts", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--decode", type=int, default=32, help="tokens after each prompt")
    parser.add_argument("--peers", nargs="+", choices=["bf16", "f32"], default=["bf16", "f32"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    folder = checkpoint(options.folder)
    load, ours = timed(lambda: mo.load(folder, threads=options.threads))
    loads, theirs = {"modicum": load}, {}
    for name in ("bf16", "f32"):
        dtype = {"bf16": torch.bfloat16, "f32": torch.float32}[name]
        seconds, model = timed(
            lambda d=dtype: transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=d).eval()
        )
        loads[f"transformers {name}"], theirs[name] = seconds, model
    random = np.random.default_rng(0)
    errors = check(ours, theirs, random.integers(0, SHAPE["vocab_size"], 64).tolist())

    runs = {"modicum": modicum_run(ours)}
    runs |= {f"transformers {name}": transformers_run(theirs[name]) for name in options.peers}
    rates: dict[str, dict[str, list[float]]] = {name: {} for name in runs}
    for repeat in range(options.repeat + 1):
        for length in options.prompts:
            prompt, rest = (random.integers(0, 1000, n).tolist() for n in (length, options.decode))
            for name, run in runs.items():
                for kind, rate in run(prompt, rest).items():
                    if repeat > 0:  # the first pass warms up
                        rates[name].setdefault(f"{kind} {length}", []).append(rate)

    medians = {name: {k: statistics.median(v) for k, v in kinds.items()} for name, kinds in rates.items()}
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {options.threads} threads; tokens/s, medians of {options.repeat}")
    print(f"error of logits beside transformers f32: {errors}")
    kinds = list(medians["modicum"])
    print(f"{'':20}" + "".join(f"{k:>14}" for k in ["load s", *kinds]))
    for name, values in medians.items():
        print(f"{name:20}{loads[name]:14.3f}" + "".join(f"{values[k]:14.2f}" for k in kinds))
    for name, values in medians.items():
        if name != "modicum":
            ratios = [loads[name] / loads["modicum"], *(medians["modicum"][k] / values[k] for k in kinds)]
            print(f"{'× ' + name:20}" + "".join(f"{r:14.2f}" for r in ratios))
    if options.json:
        result = {"schema": "modicum.benchmark.engine/1", "threads": options.threads, "load_s": loads}
        options.json.write_text(
            json.dumps(result | {"errors": errors, "rates": rates, "medians": medians}, indent=2)
        )


if __name__ == "__main__":
    main()
