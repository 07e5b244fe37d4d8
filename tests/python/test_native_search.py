# SPDX-License-Identifier: Apache-2.0
"""The native mode: what transformers loses is kept, what cannot win is dropped."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

mo = pytest.importorskip("modicum")
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from hash_model import HashStep  # noqa: E402

CASES = [
    {
        "beams": beams,
        "length_penalty": length_penalty,
        "early_stopping": early,
        "stop_ids": [1, 2, 3][:stops],
        "max_new_tokens": length,
    }
    for beams, length_penalty, early, stops, length in itertools.product(
        (2, 4, 9), (-1.0, 0.0, 1.0, 2.0), (False, "never"), (0, 1, 3), (2, 9)
    )
]


def search(number: int, mode: str = "native", **options: Any) -> Any:
    prompt = [4 + number % 150, 9, 4 + number // 7]
    return mo.search.beam(HashStep(), prompt, mode=mode, **options)


def log_probabilities(prompt: list[int], ids: list[int]) -> list[float]:
    """Of `ids`, each read after those before it."""
    found = []
    for i, token in enumerate(ids):
        row = HashStep()(None, np.asarray(prompt + ids[:i]))
        found.append(float(row[0, token]))
    return found


def test_hypotheses_are_as_good_as_those_of_transformers_or_better() -> None:
    """Rank for rank, where the search may go on as long as it can get better."""
    better = 0
    for number, options in enumerate(CASES):
        if options["early_stopping"] is False:
            continue
        beams = options["beams"]
        theirs = search(number, "transformers", num_return=beams, **options)
        ours = search(number, num_return=beams, **options)
        assert len(ours) >= len(theirs)
        for a, b in zip(ours, theirs, strict=False):
            assert a.score >= b.score, (number, options)
            better += a.score > b.score
    assert better > 0


def test_the_best_hypothesis_alone_takes_fewer_steps_and_is_as_good() -> None:
    fewer = 0
    for number, options in enumerate(CASES):
        theirs = search(number, "transformers", **options)
        ours = search(number, **options)
        assert ours[0].score >= theirs[0].score, (number, options)
        if options["early_stopping"] == "never" and options["stop_ids"]:
            assert ours.stats.steps <= theirs.stats.steps
            assert ours.stats.rows <= theirs.stats.rows
            fewer += ours.stats.steps < theirs.stats.steps
    assert fewer > 10


def test_every_hypothesis_is_real() -> None:
    """Different from the others, complete, and scored by what the model says of its tokens."""
    for number, options in enumerate(CASES[::5]):
        found = search(number, num_return=options["beams"], **options)
        assert len({tuple(h.ids) for h in found}) == len(found)
        prompt = [4 + number % 150, 9, 4 + number // 7]
        for h in found:
            stopped = h.ids[-1] in options["stop_ids"]
            assert not set(h.ids[:-1]) & set(options["stop_ids"])
            assert h.finish_reason == ("stop_token" if stopped else "length")
            assert stopped or len(h.ids) == options["max_new_tokens"]
            assert h.log_probabilities == pytest.approx(log_probabilities(prompt, h.ids), abs=1e-5)
            score = sum(h.log_probabilities) / len(h.ids) ** options["length_penalty"]
            assert h.score == pytest.approx(score, rel=1e-5)


def test_a_search_gives_the_same_again() -> None:
    for number, options in enumerate(CASES[::7]):
        runs = [search(number, num_return=2, **options) for _ in range(2)]
        assert [(h.ids, h.score) for h in runs[0]] == [(h.ids, h.score) for h in runs[1]]
        assert runs[0].tree.tokens.tolist() == runs[1].tree.tokens.tolist()


def test_a_search_over_a_small_vocabulary_finds_the_best_text_of_all() -> None:
    """With as many beams as there are prefixes nothing is cut off: the result is that of trying all texts."""
    random = np.random.default_rng(0)
    table = np.log(random.dirichlet(np.ones(4), size=(4,))).astype(np.float32)

    def step(parents: Any, tokens: Any) -> Any:
        return table[[tokens[-1]]] if parents is None else table[tokens]

    def score(ids: tuple[int, ...]) -> float:
        return sum(float(table[a, b]) for a, b in zip((0, *ids), ids, strict=False)) / len(ids)

    every = [
        (*start, last)
        for length in range(1, 4)
        for start in itertools.product((1, 2, 3), repeat=length - 1)
        for last in ((0, 1, 2, 3) if length == 3 else (0,))
    ]
    options = {"beams": 4, "num_return": 1, "max_new_tokens": 3, "stop_ids": [0], "early_stopping": "never"}
    best = mo.search.beam(step, [0], mode="native", **options)[0]
    assert best.score == pytest.approx(max(map(score, every)), abs=1e-5)


def test_no_beam_is_a_ghost() -> None:
    """Four tokens cannot fill nine beams at first: transformers goes on with copies, this does not."""

    rows = []

    def step(parents: Any, tokens: Any) -> Any:
        rows.append(1 if parents is None else len(tokens))
        scores = HashStep()(None, np.asarray([sum(rows)]))[:, 4:16].numpy()
        return np.tile(scores - np.log(np.exp(scores).sum()), (rows[-1], 1))

    allowed = {0: [1, 2, 3, 4], 1: [1, 2]}
    found = mo.search.beam(
        step,
        [5],
        beams=9,
        num_return=9,
        max_new_tokens=3,
        mode="native",
        constraint=lambda ids: allowed.get(len(ids)),
    )
    assert rows == [1, 4, 8]
    assert len(found) == 9
    assert (found.tree.scores > -1e3).all()
