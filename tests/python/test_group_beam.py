# SPDX-License-Identifier: Apache-2.0
"""Diverse beam search equals that of the last transformers that had it; see make_group_beam_golden.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

mo = pytest.importorskip("modicum")
pytest.importorskip("torch")
pytest.importorskip("transformers")

from hash_model import HashStep  # noqa: E402

GOLDEN = json.loads((Path(__file__).parent / "golden" / "group_beam.json").read_text())


def search(prompt: list[int], **options: Any) -> Any:
    return mo.search.beam(HashStep(), prompt, **options)


def test_groups_find_what_they_found_in_transformers() -> None:
    for case in GOLDEN["cases"]:
        found = search(case["prompt"], **case["options"])
        expected = case["hypotheses"]
        assert [h.ids for h in found] == [ids for ids, _ in expected], case
        assert [h.score for h in found] == pytest.approx([score for _, score in expected], abs=1e-6, rel=1e-6)


def test_a_large_penalty_makes_every_group_begin_with_another_token() -> None:
    found = search([5, 6], beams=8, groups=8, num_return=8, diversity_penalty=100.0, max_new_tokens=4)
    for position in range(4):
        assert len({h.ids[position] for h in found}) == 8


def test_groups_without_a_penalty_find_the_same() -> None:
    one = search([5, 6], beams=3, num_return=3, max_new_tokens=6)
    found = search([5, 6], beams=6, groups=2, num_return=6, max_new_tokens=6)
    assert sorted(h.ids for h in found) == sorted(2 * [h.ids for h in one])
