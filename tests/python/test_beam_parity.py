# SPDX-License-Identifier: Apache-2.0
"""Beam search equals transformers' generate(num_beams=k) token for token on float32 models."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("modicum")
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from parity import KINDS, Pair, cut, random_pair, smallest_margin, stored_pair  # noqa: E402

BEAMS = range(1, 9)
LENGTH_PENALTIES = (0.0, 0.5, 1.0, 2.0, -1.0)
EARLY = (False, True, "never")
STOPS = (0, 1, 2)
NEW_TOKENS = (1, 2, 17, 32)
GRID = list(itertools.product(BEAMS, LENGTH_PENALTIES, EARLY, STOPS, NEW_TOKENS))
# 19 shares no factor with any of the grid's sides, so that a stride over it meets every value in turn.
STRIDE = 1 if os.environ.get("MODICUM_FULL_GRID") else 19
TIE = 1e-4
TEXTS = ("Once upon a time", "The little dog was", "One day, a girl named Lily")


@pytest.fixture(scope="module", params=KINDS)
def random_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return random_pair(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module", params=("stories260K", "babyllama-361"))
def stored_model(request: pytest.FixtureRequest, data: Path) -> Pair:
    folder = data / "models" / request.param
    if not folder.is_dir():
        pytest.skip(f"{request.param} is not in MODICUM_DATA")
    return stored_pair(folder, TEXTS)


@dataclass
class Tally:
    """Counts comparisons. A mismatch is forgiven where transformers itself decided within `TIE`, if rare."""

    cases: int = 0
    ties: list[str] = field(default_factory=list)

    def compare(self, pair: Pair, prompt: list[int], stop_ids: list[int], **options: Any) -> None:
        self.cases += 1
        theirs = hf_beams(pair, prompt, stop_ids, **options)
        ours = pair.ours.beam_search(prompt, stop_ids=stop_ids, **options)
        ours = [(list(h.ids), h.score) for h in ours]
        if [ids for ids, _ in ours] == [ids for ids, _ in theirs]:
            for (_, score), (_, expected) in zip(ours, theirs, strict=True):
                # A float32 sum of n log-probabilities keeps its relative precision when it is scaled by n.
                assert expected is None or score == pytest.approx(expected, abs=1e-4, rel=1e-5)
            return
        with smallest_margin() as margin:
            hf_beams(pair, prompt, stop_ids, **options)
        case = f"{prompt} {stop_ids} {options}: margin {margin[0]:.1e}\n  {ours}\n  {theirs}"
        assert margin[0] < TIE, case
        self.ties.append(case)

    def check(self) -> None:
        assert len(self.ties) <= 0.01 * self.cases, "\n".join(self.ties)


def hf_beams(
    pair: Pair, prompt: list[int], stop_ids: list[int], **options: Any
) -> list[tuple[list[int], float | None]]:
    options = dict(options)
    beams, num_return = options.pop("beams"), options.pop("num_return", 1)
    output = pair.hf_generate(prompt, stop_ids, num_beams=beams, num_return_sequences=num_return, **options)
    scores = output.sequences_scores.tolist() if beams > 1 else [None]  # greedy has none
    return [
        (cut(ids[len(prompt) :].tolist(), stop_ids), score)
        for ids, score in zip(output.sequences, scores, strict=True)
    ]


def likely_stops(pair: Pair, prompt: list[int]) -> list[int]:
    """Tokens that beams of this prompt contain, so that hypotheses end at different lengths."""
    free = pair.ours.beam_search(prompt, beams=4, max_new_tokens=32, num_return=2, stop_ids=[])
    found = [free[0].ids[9], *free[1].ids[4:]]
    return [found[0], next(token for token in found if token != found[0])]


def run_grid(pair: Pair, stride: int) -> Tally:
    tally = Tally()
    stops = [likely_stops(pair, prompt) for prompt in pair.prompts]
    for i, (beams, length_penalty, early, n_stops, new_tokens) in enumerate(GRID):
        if i % stride:
            continue
        which = (i // stride) % len(pair.prompts)
        tally.compare(
            pair,
            pair.prompts[which],
            stops[which][:n_stops],
            beams=beams,
            num_return=max(1, beams // 2) if i % 2 else beams if beams > 1 else 1,
            length_penalty=length_penalty,
            early_stopping=early,
            max_new_tokens=new_tokens,
        )
    return tally


def test_random_models_give_the_same_beams_over_the_grid(random_model: Pair) -> None:
    run_grid(random_model, STRIDE).check()


def test_stored_models_give_the_same_beams_over_the_grid(stored_model: Pair) -> None:
    run_grid(stored_model, STRIDE).check()


@pytest.mark.parametrize("options", [{"repetition_penalty": 1.3}, {"min_new_tokens": 6}])
def test_processors_act_as_in_transformers(random_model: Pair, options: dict[str, Any]) -> None:
    tally = Tally()
    for prompt, beams in itertools.product(random_model.prompts, (2, 3, 6)):
        stops = likely_stops(random_model, prompt)
        tally.compare(
            random_model, prompt, stops, beams=beams, num_return=beams, max_new_tokens=17, **options
        )
    tally.check()


def test_the_models_own_stop_tokens_are_the_default(stored_model: Pair) -> None:
    prompt = stored_model.prompts[0]
    own = stored_model.ours.config.eos_token_ids
    default = stored_model.ours.beam_search(prompt, beams=3, max_new_tokens=40)
    named = stored_model.ours.beam_search(prompt, beams=3, max_new_tokens=40, stop_ids=own)
    assert default[0].ids == named[0].ids


def test_hypotheses_carry_their_text(stored_model: Pair) -> None:
    found = stored_model.ours.beam_search(TEXTS[0], beams=4, max_new_tokens=24, num_return=4)
    for hypothesis in found:
        assert hypothesis.text == stored_model.tokenizer.decode(hypothesis.ids, skip_special_tokens=True)
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)


@pytest.mark.parametrize(
    "options",
    [
        {"beams": 0},
        {"beams": 2, "num_return": 3},
        {"max_new_tokens": 0},
        {"stop_ids": [10**6]},
        {"early_stopping": "x"},
    ],
)
def test_options_that_make_no_sense_are_value_errors(random_model: Pair, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        random_model.ours.beam_search([5, 6], **options)
