#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a beam search can be asked for, with the bundled model: n-best, constraints, labels, any model.

    python examples/beams.py [MODEL]

Writes the search's tree to beams.svg, unless --no-picture is given.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import modicum as mo
import numpy as np
import numpy.typing as npt

DEMO = Path(__file__).parent / "demo"


def n_best(model: mo.Model, prompt: str) -> mo.BeamResult:
    """The prompt is read once, and what beams share is stored once."""
    found = model.beam_search(prompt, beams=8, num_return=3, max_new_tokens=24)
    for hypothesis in found:
        print(f"  {hypothesis.score:8.3f}  {hypothesis.text!r}")
    stats = found.stats
    batch = 8 * stats.steps
    print(f"  beams held {stats.peak_tokens} tokens at most; one cache a beam would have held {batch}")
    return found


def only_these(model: mo.Model, prompt: str) -> None:
    """An answer that is one of the allowed ones, whatever the model would like to say."""
    lexicon = mo.search.Lexicon.build(model, ["the archive", "the reading room", "the music room"])
    found = model.beam_search(prompt, beams=3, num_return=3, constraint=lexicon, stop_ids=[])
    for hypothesis in found:
        print(f"  {hypothesis.score:8.3f}  {hypothesis.text!r}")


def without(model: mo.Model, prompt: str) -> None:
    """Words that must not, and must, occur."""
    rules = mo.search.phrases(model, banned=["reading"], required=["library"])
    print(f"  {model.beam_search(prompt, beams=8, max_new_tokens=24, constraint=rules)[0].text!r}")


def labelled(model: mo.Model, texts: list[str]) -> None:
    """One of a set of labels, with a probability for each."""
    chooser = mo.search.Chooser(model, ["opening hours", "telephone numbers", "fees"])
    for text in texts:
        choice = chooser(text)
        print(f"  {choice.probability:.2f}  {choice.label:<18} {text}")


def any_model() -> None:
    """The same search over a function: here three words that like to follow each other."""
    likes = np.log(np.array([[0.1, 0.6, 0.3], [0.2, 0.1, 0.7], [0.8, 0.1, 0.1]], np.float32))

    def step(parents: npt.NDArray[np.int64] | None, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        return likes[tokens[-1:]] if parents is None else likes[tokens]

    best = mo.search.beam(step, [0], beams=2, max_new_tokens=5, num_return=2)
    print(f"  {[hypothesis.ids for hypothesis in best]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default=DEMO / "model")
    parser.add_argument("--no-picture", action="store_true")
    arguments = parser.parse_args()
    model = mo.load(arguments.model)
    prompt = (DEMO / "handbook" / "hours.md").read_text(
        "utf-8"
    ) + "\nQuestion: When is the reading room open?\n"
    print("Three best of eight beams:")
    found = n_best(model, prompt)
    print("One of three entries:")
    only_these(model, prompt + "Answer: in ")
    print("Without “reading”, with “library”:")
    without(model, prompt)
    print("Labels:")
    labelled(model, ["The reading room opens at nine.", "Call 0417 552 913.", "A card costs 12 crowns."])
    print("A model of your own:")
    any_model()
    if not arguments.no_picture:
        Path("beams.svg").write_text(found.tree.to_svg(), "utf-8")
        print("The tree of the first search is in beams.svg.")


if __name__ == "__main__":
    main()
