# SPDX-License-Identifier: Apache-2.0
"""The parts of benchmarks/compare/cag.py: what it retrieves, how it scores, what it concludes."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import modicum as mo
import numpy as np
import pytest
from tiny import write_tiny_model

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "compare"))

from knowledge.arms import Cached, InContext, Retrieved, same_prompt
from knowledge.corpora import CORPORA, Knowledge, Question, of_size
from knowledge.measure import Outcome, Settings, measure
from knowledge.retrieval import Bm25, Chunk, as_documents, chunks
from knowledge.scores import exact_match, f1
from knowledge.tables import chance, discordant, pays, retrieval_wins, size_table


def words(text: str) -> int:
    return len(text.split())


def test_chunks_joined_are_the_documents():
    documents = {
        "a.md": "# One\n\n" + "".join(f"line {i} of it\n" for i in range(9)),
        "b.txt": "A sentence here. " * 10 + "No end",
        "c.txt": "word " * 50 + "\r\n\r\nlast\n\n",
    }
    pieces = chunks(documents, 8, words)
    assert as_documents(range(len(pieces)), pieces) == documents
    assert all(words(p.text) <= 8 for p in pieces if p.document != "c.txt")
    assert len([p for p in pieces if p.document == "a.md"]) > 3


def test_retrieved_chunks_stand_in_the_order_of_the_documents():
    pieces = [Chunk("a", "1"), Chunk("a", "2"), Chunk("a", "3"), Chunk("b", "4")]
    assert list(as_documents([3, 2, 0], pieces).items()) == [("a", "13"), ("b", "4")]


def test_bm25_scores_as_its_formula():
    texts = ["the library opens at nine", "the café opens at ten ten", "fees of the library", "parking"]
    found = Bm25([Chunk("x", text) for text in texts]).scores("When does the LIBRARY open? ten ten")
    bags = [["x", *text.split()] for text in texts]
    mean = sum(map(len, bags)) / 4
    for i, bag in enumerate(bags):
        score = 0.0
        for word in ["when", "does", "the", "library", "open", "ten", "ten"]:
            n, f = sum(word in other for other in bags), bag.count(word)
            weight = math.log(1 + (4 - n + 0.5) / (n + 0.5))
            score += weight * f * 2.2 / (f + 1.2 * (0.25 + 0.75 * len(bag) / mean))
        assert found[i] == pytest.approx(score, rel=1e-5)
    assert found[3] == 0


def test_bm25_finds_the_chunk_and_keeps_the_order_of_equals():
    index = Bm25([Chunk("d", f"room {i} is {'blue' if i == 5 else 'red'}") for i in range(9)])
    assert index.best("Which is blue?", 1) == [5]
    assert index.best("nothing here matches", 3) == [0, 1, 2]
    assert len(index.best("room", 99)) == 9


@pytest.mark.parametrize(
    ("answer", "right", "exact", "shared"),
    [
        ("The 9:00 to 17:30.", ("9:00 to 17:30",), True, 1.0),
        ("9 euros", ("4 euros", "nine"), False, 0.5),
        ("", ("x",), False, 0.0),
        ("a an the", ("",), True, 1.0),
        ("red red blue", ("red green",), False, 0.4),
    ],
)
def test_scores_are_those_of_squad(answer: str, right: tuple[str, ...], exact: bool, shared: float):
    assert exact_match(answer, right) is exact
    assert f1(answer, right) == pytest.approx(shared)


def outcome(build: float, seconds: float, exact: str = "") -> Outcome:
    return Outcome(build=[build], seconds=[seconds], exact=[c == "1" for c in exact])


@pytest.mark.parametrize(
    ("build", "seconds", "text"),
    [
        (0.0, 0.3, "10 questions"),
        (3.0, 0.2, "at once"),
        (0.0, 0.1, "never"),
        (0.0, 0.05, "never"),
        (3.0, 0.05, "up to 20 questions"),
    ],
)
def test_the_cache_pays_when_it_has_cost_less_in_all(build: float, seconds: float, text: str):
    assert pays(outcome(2.0, 0.1), outcome(build, seconds)) == text


def test_discordant_counts_who_alone_was_right():
    assert discordant(outcome(0, 1, "1100"), outcome(0, 1, "1011")) == (2, 1)


def test_chance_is_the_sign_tests():
    expected = {(1, 0): 1.0, (6, 2): 0.2890625, (10, 0): 2 / 1024, (3, 3): 1.0, (0, 5): 0.0625}
    for (gained, lost), p in expected.items():
        assert chance(gained, lost) == pytest.approx(p)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> mo.Model:
    return mo.load(write_tiny_model(tmp_path_factory.mktemp("compare")))


SMALL = Knowledge(
    {"a.md": "Fees are 4 euros.\n", "b.md": "Open from 9.\nClosed at 5.\n"},
    [Question("What are the fees?", ("4 euros",), ("a.md",)), Question("When?", ("9",), ("b.md",))],
)


def test_all_arms_are_given_one_prompt(model: mo.Model, tmp_path: Path):
    cached = Cached(model, SMALL.documents, tmp_path, 8)
    plain = InContext(model, SMALL.documents, 8)
    pieces = chunks(SMALL.documents, 8, words)
    everything = Retrieved("BM25", model, Bm25(pieces), pieces, len(pieces), 0.0, 8)
    for question in ("What are the fees?", " ä? "):
        assert same_prompt(cached, plain, question)
        assert cached.ask(question).text == plain.ask(question).text == everything.ask(question).text
    assert not same_prompt(cached, InContext(model, {"a.md": "Fees"}, 8), "What?")


def test_a_comparison_measures_every_arm_on_every_question(model: mo.Model):
    result = measure(model, "small", [SMALL, SMALL], Settings([1], 8, 4, None))
    assert list(result.outcomes) == ["CAG", "context, no cache", "BM25 top-1"]
    assert (result.questions, result.same) == (4, 4)
    for one in result.outcomes.values():
        assert len(one.seconds) == len(one.exact) == len(one.found) == 4
        assert len(one.bytes) == len(one.build) == 2
    assert np.mean(result.outcomes["CAG"].found) == 1
    assert result.outcomes["BM25 top-1"].found[0]
    assert "BM25 top-1" in size_table(result, True)
    assert "- small, " in retrieval_wins([result], True)


def test_what_fits_no_context_is_told_as_retrievals_win(model: mo.Model):
    large = {f"{i}.md": f"room {i} is red\n" * 20 for i in range(9)}
    question = [Question("room 3?", ("red",), ("3.md",))]
    result = measure(model, "large", [Knowledge(large, question)], Settings([1], 16, 4, None))
    assert result.outcomes["CAG"].refused and result.outcomes["context, no cache"].refused
    assert "| CAG | does not fit the context |" in size_table(result, True)
    assert "only retrieval answers (BM25 top-1)" in retrieval_wins([result], True)


@pytest.mark.parametrize("name", CORPORA)
def test_corpora_grow_by_documents_with_their_questions(data: Path, name: str):
    if not (data / "corpora" / name).is_dir():
        pytest.skip(f"{name} is absent")
    small = of_size(CORPORA[name](data), 1500, words, 5)
    large = of_size(CORPORA[name](data), 6000, words, 5)
    assert small.documents.items() < large.documents.items()
    for one, size in ((small, 1500), (large, 6000)):
        assert size / 2 < sum(words(text) for text in one.documents.values()) <= size
        assert len(one.questions) in range(1, 6)
        for question in one.questions:
            assert set(question.documents) <= set(one.documents)
            if name != "hotpotqa":  # some of its answers are yes and no
                text = one.documents[question.documents[0]]
                assert any(answer in text for answer in question.answers) or name == "rag_chunking"
