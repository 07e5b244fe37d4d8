#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A model made cheaper, and what is left of it: the bundled one, narrower in int8, and one step too far.

python examples/retrofit.py [--out SMALLER]      # seconds; without --out in a temporary folder
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import modicum as mo

DEMO = Path(__file__).parent / "demo"


QUESTIONS = json.loads((DEMO / "questions.json").read_text("utf-8"))


def calibration_text(model: mo.Model) -> mo.retrofit.Calibration:
    """The handbook is short, so the model writes the rest: what it writes shows what it learnt."""
    own = mo.retrofit.Calibration.generate(model, 5000, seed=1)
    return mo.retrofit.Calibration.from_text(model, [DEMO / "handbook", own], tokens=4096, length=256)


def exact_matches(model: mo.Model, show: bool) -> int:
    """Right answers over the handbook as this very model reads it: what a perplexity does not show."""
    with tempfile.TemporaryDirectory() as temporary:
        kb = mo.cag.build(model, DEMO / "handbook", Path(temporary) / "handbook.kv")
        answers = [answer.text for answer in kb.ask_many([entry["question"] for entry in QUESTIONS])]
    for entry, answer in zip(QUESTIONS, answers, strict=True):
        if show and answer != entry["answer"]:
            print(f"    {entry['question']} {entry['answer']!r} is now {answer.splitlines()[:1]}")
    return sum(answer == entry["answer"] for entry, answer in zip(QUESTIONS, answers, strict=True))


def shrink(model: mo.Model, out: Path) -> None:
    """One plan with its whole report, then the same without and with one edit more."""
    text = calibration_text(model)
    integers, narrower = mo.retrofit.Quantize(bits=8), mo.retrofit.Ffn(intermediate_size=512)
    plan = mo.retrofit.Plan(ffn=narrower, quantize=integers)
    print(f"Plan: {plan}\n{mo.retrofit.estimate(model.path, plan, text)}\n")
    print(f"{mo.retrofit.run(model.path, out, plan, calibration=text)}\n")

    others = {
        f"{out.name}-int8": mo.retrofit.Plan(quantize=integers),
        f"{out.name}-1-head": mo.retrofit.Plan(kv=mo.retrofit.Kv(1), ffn=narrower, quantize=integers),
    }
    for name, other in others.items():
        mo.retrofit.run(model.path, out.parent / name, other, calibration=text, evaluate=False)
    print(f"{len(QUESTIONS)} questions about the handbook:")
    print(f"  the source: {model.weight_bytes / 1e6:.1f} MB, {exact_matches(model, False)} right")
    for folder, made in ((out, plan), *((out.parent / name, other) for name, other in others.items())):
        smaller = mo.load(folder)
        kl = mo.retrofit.compare(model, smaller, text.held_out).kl
        right = exact_matches(smaller, True)
        print(f"  {made}: {smaller.weight_bytes / 1e6:.1f} MB, KL {kl:.2g}, {right} right")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="a new directory; two others are made beside it"
    )
    arguments = parser.parse_args()
    model = mo.load(DEMO / "model")
    if arguments.out is not None:
        shrink(model, arguments.out)
        print(f"\nLook at {arguments.out}/retrofit.html.")
        return
    with tempfile.TemporaryDirectory() as temporary:
        shrink(model, Path(temporary) / "smaller")


if __name__ == "__main__":
    main()
