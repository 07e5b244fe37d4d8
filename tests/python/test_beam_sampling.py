# SPDX-License-Identifier: Apache-2.0
"""Beam sampling draws its candidates without replacement, from what temperature and filters leave."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest

mo = pytest.importorskip("modicum")
LOG_PROBABILITIES = np.log(np.array([0.4, 0.25, 0.2, 0.1, 0.05], np.float32))
SEEDS = 4000
# Of chi-square with d degrees of freedom, d + 4 sqrt(2 d) is exceeded less than once in 10 000 times.
SLACK = 4.0


def same_row(parents: Any, tokens: Any) -> Any:
    """Five tokens, as likely after anything."""
    return np.tile(LOG_PROBABILITIES, (1 if parents is None else len(tokens), 1))


def sample(**options: Any) -> Any:
    return mo.search.beam(same_row, [0], **{"temperature": 1.0, "max_new_tokens": 1, **options})


def without_replacement(weights: Any, count: int) -> dict[tuple[int, ...], float]:
    """The probability of each ordered draw."""
    found = {}
    for draw in itertools.permutations(np.flatnonzero(weights).tolist(), count):
        left, probability = 1.0, 1.0
        for token in draw:
            probability *= weights[token] / left
            left -= weights[token]
        found[draw] = probability
    return found


def check_frequencies(found: Counter[Any], expected: dict[Any, float]) -> None:
    total = found.total()
    assert set(found) <= set(expected)
    chi_square = sum((found[k] - total * p) ** 2 / (total * p) for k, p in expected.items())
    degrees = len(expected) - 1
    assert chi_square < degrees + SLACK * np.sqrt(2 * degrees), (found, expected)


def test_a_seed_decides_the_result() -> None:
    options = {"beams": 3, "num_return": 3, "max_new_tokens": 6, "stop_ids": [4]}
    runs = [[[h.ids for h in sample(seed=seed, **options)] for seed in range(20)] for _ in range(2)]
    assert runs[0] == runs[1]
    assert len({str(ids) for ids in runs[0]}) > 15


def test_pairs_of_hypotheses_are_drawn_without_replacement() -> None:
    """Of two draws and one new token both are returned: as a set, since hypotheses are sorted by score."""
    pairs: Counter[Any] = Counter()
    for seed in range(SEEDS):
        pairs[frozenset(h.ids[0] for h in sample(beams=2, num_return=2, seed=seed))] += 1
    expected: Counter[Any] = Counter()
    for draw, probability in without_replacement(np.exp(LOG_PROBABILITIES), 2).items():
        expected[frozenset(draw)] += probability
    check_frequencies(pairs, dict(expected))


def test_one_beam_is_plain_sampling() -> None:
    firsts = Counter(sample(beams=1, seed=seed)[0].ids[0] for seed in range(SEEDS))
    check_frequencies(firsts, dict(enumerate(np.exp(LOG_PROBABILITIES).tolist())))


def test_temperature_changes_the_distribution() -> None:
    weights = np.exp(LOG_PROBABILITIES / 0.5)
    weights /= weights.sum()
    pairs = Counter(
        frozenset(h.ids[0] for h in sample(beams=2, num_return=2, temperature=0.5, seed=seed))
        for seed in range(SEEDS)
    )
    expected: Counter[Any] = Counter()
    for draw, probability in without_replacement(weights, 2).items():
        expected[frozenset(draw)] += probability
    check_frequencies(pairs, dict(expected))


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"top_k": 3}, {0, 1, 2}),
        ({"top_k": 1}, {0, 1}),  # never fewer than stop tokens + 1, so that a beam can go on
        ({"top_p": 0.6}, {0, 1}),
        ({"top_p": 0.7}, {0, 1, 2}),
        ({"min_p": 0.3}, {0, 1, 2}),
        ({"min_p": 0.6}, {0, 1}),
        ({"top_k": 4, "min_p": 0.45}, {0, 1, 2}),
    ],
)
def test_filters_leave_the_tokens_that_they_name(options: dict[str, Any], allowed: set[int]) -> None:
    seen = set()
    for seed in range(100):
        for h in sample(beams=2, num_return=2, max_new_tokens=3, stop_ids=[1], seed=seed, **options):
            seen.update(h.ids)
    assert seen == allowed


def test_groups_draw_apart() -> None:
    found = sample(beams=4, groups=4, num_return=4, max_new_tokens=6, diversity_penalty=0.1, seed=3)
    assert len({tuple(h.ids) for h in found}) > 1
