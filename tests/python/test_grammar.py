# SPDX-License-Identifier: Apache-2.0
"""Searches within JSON schemas, regular expressions and grammars."""

from __future__ import annotations

import json
import re
from pathlib import Path

import modicum as mo
import pytest

pytest.importorskip("llguidance")

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["old", "new"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model(demo: Path) -> mo.Model:
    return mo.load(demo / "model")


@pytest.mark.parametrize("beams", [1, 2, 12])
def test_every_hypothesis_is_json_of_the_schema(model: mo.Model, beams: int) -> None:
    schema = mo.search.Grammar.json(model, SCHEMA)
    found = model.beam_search(
        "A visitor as JSON:", beams=beams, num_return=beams, constraint=schema, stop_ids=[], max_new_tokens=64
    )
    for hypothesis in found:
        value = json.loads(hypothesis.text)
        assert set(value) == {"name", "age", "tags"} and len(value["name"]) <= 6
        assert 0 <= value["age"] <= 120 and len(value["tags"]) <= 2 and set(value["tags"]) <= {"old", "new"}
        assert hypothesis.finish_reason == "complete"


def test_with_stop_tokens_a_text_ends_by_one(model: mo.Model) -> None:
    stops = model.config.eos_token_ids
    found = model.beam_search(
        "As JSON:", beams=4, num_return=4, constraint=mo.search.Grammar.json(model, SCHEMA), max_new_tokens=64
    )
    assert all(h.ids[-1] in stops for h in found)
    assert all(set(json.loads(h.text)) == {"name", "age", "tags"} for h in found)


def test_a_text_matches_its_regular_expression_as_a_whole(model: mo.Model) -> None:
    expression = r"[0-9]{2}:[0-9]{2} (am|pm)"
    found = model.beam_search(
        "It opens at ",
        beams=8,
        num_return=8,
        constraint=mo.search.Grammar.regex(model, expression),
        stop_ids=[],
    )
    assert all(re.fullmatch(expression, h.text) for h in found)
    assert len({h.text for h in found}) > 4  # a text may be cut into tokens in two ways


def test_a_text_is_of_its_lark_grammar(model: mo.Model) -> None:
    grammar = mo.search.Grammar.lark(model, 'start: "(" start ")" | "x"')
    found = model.beam_search(
        "", start=model.tree().extend([5]), beams=6, num_return=3, constraint=grammar, stop_ids=[]
    )
    assert all(re.fullmatch(r"\(*x\)*", h.text) and h.text.count("(") == h.text.count(")") for h in found)


def test_a_state_is_forked_not_replayed(model: mo.Model) -> None:
    """A parent's matcher stays as it was when a beam goes on from it, so another beam can."""
    grammar = mo.search.Grammar.regex(model, "(ab|ac)")
    root = grammar.root()
    first = model.tokenizer.encode("a", add_special_tokens=False)[0]
    one = grammar.advance(root, first)
    b, c = (model.tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "bc")
    assert grammar.ending(grammar.advance(one, b)) == "must"
    assert grammar.ending(grammar.advance(one, c)) == "must"
    assert grammar.ending(one) == grammar.ending(root) == "no"


def test_a_grammar_and_phrases_hold_together(model: mo.Model) -> None:
    both = mo.search.all_of(
        mo.search.Grammar.regex(model, "[a-d]{4}"), mo.search.phrases(model, banned=["ab", "c"])
    )
    found = model.beam_search("x", beams=8, num_return=8, constraint=both, stop_ids=[])
    assert all(re.fullmatch("[abd]{4}", h.text) and "ab" not in h.text for h in found)


@pytest.mark.parametrize(
    "make",
    [
        lambda m: mo.search.Grammar.json(m, {"type": "nonsense"}),
        lambda m: mo.search.Grammar.json(m, "{not json"),
        lambda m: mo.search.Grammar.regex(m, "(("),
        lambda m: mo.search.Grammar.lark(m, "start: missing"),
    ],
)
def test_a_grammar_that_makes_no_sense_is_named(model: mo.Model, make) -> None:
    with pytest.raises(mo.InvalidArgument, match=r"\[grammar\]"):
        make(model)
