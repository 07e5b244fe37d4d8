#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A year in the life of a knowledge cache: planned, built, asked, changed, checked.

python examples/knowledge.py        # the bundled model and handbook, in a temporary folder
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import modicum as mo

DEMO = Path(__file__).parent / "demo"


def show(question: str, answer: mo.cag.Answer) -> None:
    print(f"Q  {question}")
    if answer.abstained:
        print(f"A  The documents do not say. ({answer.text})")
        return
    print(f"A  {answer.text}")
    for c in answer.citations:
        print(f"   {c.document}, “{c.heading}”, line {c.line}: {c.quote}")


def main() -> None:
    model = mo.load(DEMO / "model")
    with tempfile.TemporaryDirectory() as temporary:
        handbook = Path(shutil.copytree(DEMO / "handbook", Path(temporary) / "handbook"))
        cache = Path(temporary) / "handbook.kv"

        plan = mo.cag.plan(model, handbook)
        print(f"{plan.tokens} tokens of {plan.context}, {plan.bytes['wide']:,} bytes, {plan.seconds:.3f} s\n")
        mo.cag.build(model, handbook, cache)

        # Every day: any number of processes map the same file.
        kb = mo.cag.open(cache, model)
        questions = ["When is the reading room open?", "What does a colour copy cost?", "Who is the mayor?"]
        for question, answer in zip(questions, kb.ask_many(questions), strict=True):
            show(question, answer)

        # Once a month: a page changes, another comes. Whoever has the file open keeps what they opened.
        fees = handbook / "fees.md"
        fees.write_text(fees.read_text("utf-8").replace("0.30 euros", "0.40 euros"), "utf-8")
        (handbook / "parking.md").write_text("# Parking\n\n- Car park: 3 euros\n", "utf-8")
        changes = mo.cag.update(cache, model, handbook)
        print(
            f"\nreplaced {changes.replaced}, added {changes.added}: "
            f"{changes.computed_tokens} of {changes.tokens} tokens read"
        )
        kb = mo.cag.open(cache, model)
        show(questions[1], kb.ask(questions[1]))

        # A conversation is a branch of the cache; leaving it drops the branch.
        with kb.session() as talk:
            for question in ("Who leads the story hour?", "What does the chess club cost?"):
                show(question, talk.ask(question))

        # Once a year: is the file still what the model would compute?
        report = mo.cag.verify(cache, model, deep=True)
        print(f"\nverified: {report['bytes']:,} bytes, difference {report['difference']}")


if __name__ == "__main__":
    main()
