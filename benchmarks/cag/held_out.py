#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Answers, citations and abstention of knowledge caches on institutions that the demo model never saw.

For every layout and every way of keeping keys and values: exact match; whether cached answers are the
uncached ones (joint and wide, where they must be); citations against the document and the lines that hold
the answer; and abstention on questions that no document answers, at the threshold of the library and at one
calibrated on other institutions (`mo.cag.calibrate`).

    python benchmarks/cag/held_out.py [--institutions 12] [--facts 8 16 24 36]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "demo"))

import modicum as mo
from generator import UNKNOWN, Institution, Question, make_institution

DEMO = Path(__file__).parents[2] / "examples" / "demo"
HELD_OUT_SEED = 10_000_000_000_000  # as in train.py: beyond every training seed
FORMS = [(layout, kv) for layout in ("joint", "blocks") for kv in ("wide", "int8", "int4")]


@dataclass
class Asked:
    """A question with what was given and what is right."""

    place: Institution
    question: Question
    answer: mo.cag.Answer

    @property
    def answerable(self) -> bool:
        return bool(self.question.source)

    @property
    def right(self) -> bool:
        return self.answerable and self.answer.text.strip() == self.question.answer

    @property
    def cites_document(self) -> bool:
        return any(c.document == self.question.source for c in self.answer.citations)

    @property
    def cites_line(self) -> bool:
        """A line of the right document that holds the right answer."""
        return any(
            c.document == self.question.source and self.question.answer.lower() in c.quote.lower()
            for c in self.answer.citations
        )


def places(seed: int, facts: list[int], count: int) -> list[Institution]:
    return [
        make_institution(HELD_OUT_SEED + seed + i, size, new_names)
        for size in facts
        for new_names in (False, True)
        for i in range(count)
    ]


def ask_all(
    model: mo.Model, institutions: list[Institution], layout: str, kv: str, folder: Path
) -> Iterator[Asked]:
    for place in institutions:
        documents = [
            mo.cag.Document(name, name, text, (), False, False)
            for name, text in sorted(place.documents.items())
        ]
        knowledge = mo.cag.build(model, documents, folder / "a.kv", layout=layout, kv=kv)
        answers = knowledge.ask_many([q.text for q in place.questions])
        if (layout, kv) == ("joint", "wide"):
            check_uncached(model, knowledge, place, answers)
        for question, answer in zip(place.questions, answers, strict=True):
            yield Asked(place, question, answer)


def check_uncached(
    model: mo.Model, knowledge: mo.cag.Knowledge, place: Institution, answers: list[mo.cag.Answer]
) -> None:
    """The cache must not change an answer. A few questions a place: the uncached way is slow."""
    for question, answer in list(zip(place.questions, answers, strict=True))[:4]:
        ids = knowledge.branch().tokens + knowledge.question_ids(question.text)
        if model.generate(ids, max_new_tokens=64).ids != answer.ids:
            raise SystemExit(f"The cache changed the answer to {question.text!r}.")


def share(part: int, whole: int) -> str:
    return f"{part / whole:.3f}" if whole else "–"


def row(layout: str, kv: str, asked: list[Asked], threshold: float) -> str:
    answerable = [a for a in asked if a.answerable]
    unanswerable = [a for a in asked if not a.answerable]
    right = [a for a in answerable if a.right]
    cited = [a for a in right if a.answer.citations]
    abstained = [a for a in asked if a.answer.confidence < threshold]
    mistaken = [a for a in abstained if a.right]
    cells = [
        layout,
        kv,
        str(len(asked)),
        share(len(right), len(answerable)),
        share(sum(a.cites_document for a in cited), len(cited)),
        share(sum(a.cites_line for a in cited), len(cited)),
        share(len(cited), len(right)),
        share(sum(not a.answerable for a in abstained), len(abstained)),
        share(len(abstained) - len(mistaken), len(abstained)),
        share(sum(a.answer.confidence < threshold for a in unanswerable), len(unanswerable)),
        share(len(right) - len(mistaken), len(right)),
    ]
    return f"| {' | '.join(cells)} |"


HEADER = """\
| layout | kv | questions | exact match | cited document right | cited line right | right answers cited \
| abstained: unanswerable | abstained: not right | unanswerable abstained | right answers kept |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"""


def calibrated(model: mo.Model, institutions: list[Institution], folder: Path) -> mo.cag.Calibration:
    questions = []
    for number, place in enumerate(institutions):
        documents = [
            mo.cag.Document(name, name, text, (), False, False)
            for name, text in sorted(place.documents.items())
        ]
        knowledge = mo.cag.build(model, documents, folder / f"{number}.kv")
        questions += [(knowledge, q.text, q.answer if q.source else None) for q in place.questions]
    return mo.cag.calibrate(questions)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--institutions", type=int, default=12, help="of each size and kind of names")
    parser.add_argument("--facts", type=int, nargs="+", default=[8, 16, 24, 36])
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    model = mo.load(DEMO / "model", threads=options.threads)
    threshold = mo.cag.ABSTAIN_BELOW
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        found = calibrated(model, places(5000, options.facts, max(2, options.institutions // 3)), folder)
        print(
            f"Calibrated on {found.questions} questions of other institutions: abstain below "
            f"{found.threshold:.3f} (recall {found.recall:.3f}, right answers kept {found.kept:.3f}).\n"
        )
        institutions = places(9000, options.facts, options.institutions)
        print(f"Threshold {threshold}, the library's:\n\n{HEADER}")
        joint: list[Asked] = []
        for layout, kv in FORMS:
            asked = list(ask_all(model, institutions, layout, kv, folder))
            joint = joint or asked
            print(row(layout, kv, asked, threshold), flush=True)
        print(f"\nThreshold {found.threshold:.3f}, calibrated:\n\n{HEADER}")
        print(row("joint", "wide", joint, found.threshold))
    says = sum(a.answer.text.strip() == UNKNOWN for a in joint if not a.answerable)
    count = sum(not a.answerable for a in joint)
    print(f"\nUnanswerable questions to which the model itself says so: {says} of {count}.")


if __name__ == "__main__":
    main()
