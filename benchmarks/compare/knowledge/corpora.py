# SPDX-License-Identifier: Apache-2.0
"""Documents with questions, in growing amounts."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

DEMO = Path(__file__).parents[3] / "examples" / "demo"
BLOCK = 2000  # characters of one document cut from a long text


@dataclass(frozen=True)
class Question:
    """`answers`: any of them is right. `documents`: those that it needs."""

    text: str
    answers: tuple[str, ...]
    documents: tuple[str, ...]


@dataclass(frozen=True)
class Knowledge:
    """Documents by name, in the order of names, and questions that they answer."""

    documents: dict[str, str]
    questions: list[Question]


def institutions(facts: int, count: int) -> list[Knowledge]:
    """Invented institutions that the demo model's training never showed, with `count` questions between them.

    Those of examples/demo/evaluate.py. Questions that the documents do not answer are left out.
    """
    if str(DEMO) not in sys.path:
        sys.path.append(str(DEMO))
    import evaluate

    places = [
        Knowledge(
            dict(sorted(place.documents.items())),
            [Question(q.text, (q.answer,), (q.source,)) for q in place.questions if q.source],
        )
        for place in evaluate.institutions(facts, 4 * count, False)
    ]
    # A few questions to each of several places: one place's style of writing decides much.
    share = max(4, -(-count // len(places)))
    chosen: list[Knowledge] = []
    while places and sum(len(place.questions) for place in chosen) < count:
        place = places.pop(0)
        chosen.append(Knowledge(place.documents, place.questions[:share]))
    return chosen


Corpus = Iterator[tuple[dict[str, str], list[Question]]]
"""Documents that come together, and the questions that they and those before them answer."""


def xquad(data: Path) -> Corpus:
    for article in json.loads((data / "corpora/xquad/xquad.en.json").read_text("utf-8"))["data"]:
        for number, paragraph in enumerate(article["paragraphs"]):
            name = f"{article['title']}-{number}.txt"
            asked = [
                Question(q["question"], tuple({a["text"] for a in q["answers"]}), (name,))
                for q in paragraph["qas"]
            ]
            yield {name: paragraph["context"] + "\n"}, asked


def hotpotqa(data: Path) -> Corpus:
    """Ten paragraphs to a question, of which it needs two."""
    for line in (data / "corpora/hotpotqa/hotpot_distractor_100.jsonl").read_text("utf-8").splitlines():
        entry = json.loads(line)
        documents = {_file_name(title): "".join(text) + "\n" for title, text in entry["context"]}
        needed = tuple({_file_name(title) for title, _ in entry["supporting_facts"]})
        yield documents, [Question(entry["question"], (entry["answer"],), needed)]


def rag_chunking(data: Path) -> Corpus:
    """Two long texts in blocks of paragraphs. The answers are excerpts, so exact match says nothing here."""
    folder = data / "corpora/rag_chunking"
    with (folder / "questions_df.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for source in ("state_of_the_union", "wikitexts"):
        text = (folder / f"{source}.md").read_text("utf-8")
        asked = [
            (row["question"], json.loads(row["references"])) for row in rows if row["corpus_id"] == source
        ]
        begin = 0
        for number, end in enumerate(_block_ends(text)):
            name = f"{source}-{number:03}.md"
            inside = [
                Question(question, (" ".join(r["content"] for r in references),), (name,))
                for question, references in asked
                if all(begin <= r["start_index"] and r["end_index"] <= end for r in references)
            ]
            yield {name: text[begin:end]}, inside
            begin = end


def _block_ends(text: str) -> Iterator[int]:
    begin = 0
    while begin < len(text):
        end = text.find("\n", begin + BLOCK)
        begin = len(text) if end < 0 else end + 1
        yield begin


def _file_name(title: str) -> str:
    return re.sub(r"[^\w -]", "_", title) + ".txt"


CORPORA: dict[str, Callable[[Path], Corpus]] = {
    "xquad": xquad,
    "hotpotqa": hotpotqa,
    "rag_chunking": rag_chunking,
}


def of_size(corpus: Corpus, tokens: int, count: Callable[[str], int], questions: int) -> Knowledge:
    """The first documents of a corpus of about `tokens` tokens, and `questions` spread over them."""
    documents: dict[str, str] = {}
    asked: list[Question] = []
    size = 0
    for some, about in corpus:
        added = sum(count(f"[{name}]\n{text}\n\n") for name, text in some.items() if name not in documents)
        if documents and size + added > tokens:
            break
        size += added
        documents |= some
        asked += about
    step = max(1, len(asked) // questions)
    return Knowledge(dict(sorted(documents.items())), asked[::step][:questions])
