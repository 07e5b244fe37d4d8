#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What int8 and int4 keys and values save, and what they lose.

    python benchmarks/cag/encodings.py loss      # divergence and perplexity on trained models, by model
    python benchmarks/cag/encodings.py speed     # seconds of a decoded token against the length of the cache

`loss` builds caches of corpus text with each encoding and prints what `build` measured: mean divergence of
the next token (Kullback-Leibler, nats), change of perplexity, and how often the likeliest token stays.
Models and corpora are those of MODICUM_DATA, beside the bundled one.

`speed` takes a random checkpoint of a real shape; keys and values are random too, as they need no reading
then. One token is decoded on each cache in turn, repeatedly; medians. "Limit" is what reading the weights
and the cache once takes at the measured bandwidth.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "compare"))

import modicum as mo
import numpy as np
from peers.shapes import SHAPES, readable

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("MODICUM_DATA", ROOT.parent / "shared" / "data"))
ENCODINGS = ("wide", "int8", "int4")
PLAIN = mo.cag.PromptFormat("", "\n", "\n", add_special_tokens=False)


def texts(name: str, model: mo.Model, count: int) -> list[str]:
    """Pieces of text that fill most of the model's context."""
    if name == "demo":
        text = "\n".join(p.read_text("utf-8") for p in sorted((ROOT / "examples/demo/handbook").iterdir()))
        return [text]
    corpus = "tinystories" if name.startswith("stories") else "tinyshakespeare"
    files = sorted(p for p in (DATA / "corpora" / corpus).rglob("*.txt") if p.name != "SOURCE.txt")
    text = files[0].read_text("utf-8", errors="ignore")
    tokens = model.config.max_position_embeddings - 90
    # Characters of so many tokens, and a margin.
    size = int(tokens * len(text[:20000]) / max(1, len(model.tokenizer.encode(text[:20000]))) * 0.9)
    step = max(size, (len(text) - size) // max(1, count))
    return [text[i : i + size] for i in range(0, len(text) - size, step)][:count]


def print_loss(count: int) -> None:
    print("| model | text | kv | bytes a token | KL, nats | perplexity | same likeliest token |")
    print("| --- | ---: | --- | ---: | ---: | ---: | ---: |")
    models = {"demo": ROOT / "examples/demo/model"} | {
        p.name: p for p in sorted((DATA / "models").iterdir()) if (p / "config.json").exists()
    }
    for name, folder in models.items():
        model = mo.load(folder)
        pieces = texts(name, model, count)
        for kv in ENCODINGS[1:]:
            found = []
            with tempfile.TemporaryDirectory() as temporary:
                for piece in pieces:
                    document = mo.cag.Document("text", "text", piece, (), False, False)
                    kb = mo.cag.build(
                        model, document, Path(temporary) / "a.kv", kv=kv, format=PLAIN, reserve=40
                    )
                    found.append(kb.describe())
            measured = [f["certificate"]["measurements"][0] for f in found]
            tokens = statistics.mean(f["tokens"] for f in found)
            mean = {
                key: statistics.mean(m[key] for m in measured)
                for key in ("kl", "perplexity_change", "top1_agreement")
            }
            size = found[0]["bytes_per_token"]
            print(
                f"| {name} | {len(pieces)} × {tokens:.0f} tokens | {kv} | {size:.0f} | "
                f"{mean['kl']:.2g} | {mean['perplexity_change']:+.2%} | {mean['top1_agreement']:.1%} |",
                flush=True,
            )


def print_speed(shape: str, lengths: list[int], repeat: int, work: Path) -> None:
    model = mo.load(readable(work, SHAPES[shape]) / shape / "bf16")
    config = model.config
    bandwidth = mo.read_bandwidth()
    print(f"{shape}, {mo.active_isa()}, reads {bandwidth / 1e9:.1f} GB/s\n")
    print("| tokens | kv | cache, MB | ms a token | limit, ms | wide ÷ this | attention alone: wide ÷ this |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    random = np.random.default_rng(1)
    bare = _seconds(model.tree().extend([1]), repeat)
    for length in lengths:
        size = (config.num_hidden_layers, length, config.num_key_value_heads, config.head_dim)
        noise = random.standard_normal(size, dtype=np.float32)
        bits = (noise.view(np.uint32) >> 16).astype(np.uint16)
        with tempfile.TemporaryDirectory() as temporary:
            knowledge = _caches(model, length, bits, Path(temporary))
            seconds = _interleaved(knowledge, repeat)
        for kv in ENCODINGS:
            size_of = knowledge[kv].describe()["bytes_per_token"] * length
            limit = (model.weight_bytes + size_of) / bandwidth
            alone = (seconds["wide"] - bare) / max(seconds[kv] - bare, 1e-9)
            print(
                f"| {length} | {kv} | {size_of / 1e6:.0f} | {seconds[kv] * 1e3:.1f} | {limit * 1e3:.1f} | "
                f"{seconds['wide'] / seconds[kv]:.2f} | {alone:.2f} |",
                flush=True,
            )


def _caches(model: mo.Model, length: int, bits: np.ndarray, folder: Path) -> dict[str, mo.cag.Knowledge]:
    def document(words: int) -> mo.cag.Document:
        return mo.cag.Document("x", "x", "t7 " * words, (), False, False)

    overhead = len(mo.cag.prompt_ids(model, document(1), format=PLAIN)) - 1
    text = document(length - overhead)
    return {
        kv: mo.cag.adopt(model, text, folder / f"{kv}.kv", (bits, bits), format=PLAIN, kv=kv)
        for kv in ENCODINGS
    }


def _seconds(branch: mo.Branch, repeat: int) -> float:
    found = []
    for _ in range(repeat):
        start = time.perf_counter()
        branch.extend([5])
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def _interleaved(knowledge: dict[str, mo.cag.Knowledge], repeat: int) -> dict[str, float]:
    found: dict[str, list[float]] = {kv: [] for kv in knowledge}
    for kb in knowledge.values():
        kb.branch().extend([5])  # checks the file, and fetches it
    for _ in range(repeat):
        for kv, kb in knowledge.items():
            found[kv].append(_seconds(kb.branch(), 3))
    return {kv: statistics.median(times) for kv, times in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["loss", "speed"])
    parser.add_argument("--texts", type=int, default=8, help="loss: pieces of text a model")
    parser.add_argument("--shape", default="qwen2.5-0.5b", choices=sorted(SHAPES), help="speed")
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 8192, 16384, 32000], help="speed")
    parser.add_argument("--repeat", type=int, default=7, help="speed")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "modicum-bench")
    options = parser.parse_args()
    if options.what == "loss":
        print_loss(options.texts)
    else:
        print_speed(options.shape, options.tokens, options.repeat, options.work)


if __name__ == "__main__":
    main()
