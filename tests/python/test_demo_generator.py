"""The demo's generator, its handbook and its questions: what the training and the notebooks rely on."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "examples" / "demo"
sys.path.insert(0, str(DEMO))

import names as demo_names  # noqa: E402
from generator import UNKNOWN, make_institution, system_prompt  # noqa: E402


@pytest.mark.parametrize("held_out", [False, True])
def test_a_seed_gives_the_same_institution(held_out: bool) -> None:
    first, again = (make_institution(11, 15, held_out) for _ in range(2))
    assert first.documents == again.documents
    assert first.questions == again.questions
    assert first.documents != make_institution(12, 15, held_out).documents


@pytest.mark.parametrize("facts", [1, 4, 12, 30])
def test_every_answer_is_a_span_of_its_document(facts: int) -> None:
    for seed in range(60):
        place = make_institution(seed, facts)
        assert place.questions
        for question in place.questions:
            if question.kind == "unknown":
                assert question.answer == UNKNOWN
            else:
                assert question.answer in place.documents[question.source], question


def test_no_question_has_two_answers() -> None:
    for seed in range(60):
        answers: dict[str, str] = {}
        for question in make_institution(seed, 24).questions:
            assert answers.setdefault(question.text, question.answer) == question.answer


def test_held_out_syllables_never_occur_in_training() -> None:
    heads = {head: demo_names.is_held_out(head) for head in demo_names.heads()}
    assert 0.05 < sum(heads.values()) / len(heads) < 0.25
    import random

    seen, new = (demo_names.Names(random.Random(3), held_out) for held_out in (False, True))
    known = {seen.stem() for _ in range(3000)}
    assert known.isdisjoint(new.stem() for _ in range(3000))


def test_the_prompt_holds_the_documents_verbatim_and_sorted() -> None:
    prompt = system_prompt({"b.md": "second\n", "a.md": "first\n"})
    assert (
        prompt == "Answer briefly, from the documents below only.\n\n[a.md]\nfirst\n\n\n[b.md]\nsecond\n\n\n"
    )


def test_the_handbook_answers_its_questions() -> None:
    documents = {path.name: path.read_text() for path in (DEMO / "handbook").glob("*.md")}
    questions = json.loads((DEMO / "questions.json").read_text())
    assert 10 <= len(questions) <= 12
    for entry in questions:
        assert entry["answer"] in documents[entry["source"]], entry


def test_the_handbook_is_not_in_the_training_data() -> None:
    handbook = " ".join(path.read_text() for path in (DEMO / "handbook").glob("*.md"))
    own = {"Wexcombe", "Marlene", "Voss", "Tobias", "Renk", "Oda", "Kemper", "Tanner"}
    assert all(name in handbook for name in own)
    for seed in range(200):
        text = system_prompt(make_institution(seed, 16).documents)
        assert not re.search("Wexcombe|Marlene Voss|Tobias Renk|Oda Kemper|14 Tanner Street", text)
