# SPDX-License-Identifier: Apache-2.0
"""Beam search of trained models equals transformers' over many prompts, alone and several at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

mo = pytest.importorskip("modicum")
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from parity import KINDS, Pair, cut, random_pair, smallest_margin, stored_pair  # noqa: E402

IS_FULL = bool(os.environ.get("MODICUM_FULL_GRID"))
COUNT = 500 if IS_FULL else 24
BEAMS, NEW_TOKENS = 4, 16
TIE = 1e-4
OPENINGS = ("Once upon a time", "One day", "There was", "Lily and Tom", "A big dog", "In bed", "A little")
MIDDLES = (" a girl", " the cat", " was happy", " went to", " saw a red ball", " said", " and his", " had")
ENDS = ("", " to play", " with a", " in the sun", " because", ". She", ', "I', " very", " and then")


def texts(count: int) -> list[str]:
    """Story beginnings, all different."""
    return [
        OPENINGS[i % 7] + MIDDLES[i // 7 % 8] + ENDS[i // 56 % 9] for i in range(0, 504, max(1, 504 // count))
    ][:count]


@pytest.fixture(scope="module", params=("stories260K", "babyllama-361"))
def stored(request: pytest.FixtureRequest, data: Path) -> Pair:
    folder = data / "models" / request.param
    if not folder.is_dir():
        pytest.skip(f"{request.param} is not in MODICUM_DATA")
    return stored_pair(folder, texts(COUNT))


@pytest.fixture(scope="module", params=KINDS)
def random(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    pair = random_pair(request.param, tmp_path_factory.mktemp(request.param))
    generator = torch.Generator().manual_seed(2)
    lengths = [1 + i * 7 % 40 for i in range(COUNT)]
    return Pair(
        pair.ours, pair.theirs, [torch.randint(4, 160, (n,), generator=generator).tolist() for n in lengths]
    )


def hf_beams(pair: Pair, prompt: list[int], stops: list[int], **options: Any) -> list[Any]:
    """Pairs of ids and score, best first."""
    output = pair.hf_generate(
        prompt,
        stops,
        num_beams=BEAMS,
        num_return_sequences=BEAMS,
        max_new_tokens=NEW_TOKENS,
        tokenizer=pair.tokenizer,
        **options,
    )
    rows = [cut(row, stops) for row in output.sequences[:, len(prompt) :].tolist()]
    return list(zip(rows, output.sequences_scores.tolist(), strict=True))


def compare(pair: Pair, ours: list[Any], stops: list[int]) -> None:
    """`ours`: a result for each of the pair's prompts."""
    ties = []
    for prompt, result in zip(pair.prompts, ours, strict=True):
        theirs = hf_beams(pair, prompt, stops)
        if [h.ids for h in result] == [ids for ids, _ in theirs]:
            assert [h.score for h in result] == pytest.approx([s for _, s in theirs], abs=1e-4, rel=1e-5)
            continue
        with smallest_margin() as margin:
            hf_beams(pair, prompt, stops)
        assert margin[0] < TIE, f"{prompt}: margin {margin[0]:.1e}\n  {list(result)}\n  {theirs}"
        ties.append(prompt)
    print(f"{len(ours)} prompts, {len(ties)} decided by a tie")
    assert len(ties) <= 0.02 * len(ours) + 1


def search(pair: Pair, prompt: Any, **options: Any) -> Any:
    return pair.ours.beam_search(prompt, beams=BEAMS, num_return=BEAMS, max_new_tokens=NEW_TOKENS, **options)


def test_trained_models_write_what_they_write_in_transformers(stored: Pair) -> None:
    stops = list(stored.ours.config.eos_token_ids)
    compare(stored, [search(stored, prompt) for prompt in stored.prompts], stops)


def test_random_models_write_what_they_write_in_transformers(random: Pair) -> None:
    compare(random, [search(random, prompt, stop_ids=[1, 2]) for prompt in random.prompts], [1, 2])


def same(a: Any, b: Any) -> bool:
    return [(h.ids, h.score, h.log_probabilities, h.finish_reason) for h in a] == [
        (h.ids, h.score, h.log_probabilities, h.finish_reason) for h in b
    ]


def test_several_prompts_at_once_get_exactly_what_each_gets_alone(stored: Pair) -> None:
    options = {"beams": BEAMS, "num_return": BEAMS, "max_new_tokens": NEW_TOKENS}
    for begin in range(0, len(stored.prompts), 12):
        prompts = stored.prompts[begin : begin + 12]
        for result, prompt in zip(stored.ours.beam_search_many(prompts, **options), prompts, strict=True):
            assert same(result, search(stored, prompt))


def test_prompts_that_are_done_early_do_not_hold_up_or_change_the_others(random: Pair) -> None:
    """Stop tokens and early stopping end the searches after different numbers of steps."""
    options = {"beams": 3, "num_return": 3, "max_new_tokens": 30, "stop_ids": list(range(0, 60, 2))}
    for early in (False, True, "never"):
        found = random.ours.beam_search_many(random.prompts[:16], early_stopping=early, **options)
        alone = [random.ours.beam_search(p, early_stopping=early, **options) for p in random.prompts[:16]]
        assert all(same(a, b) for a, b in zip(found, alone, strict=True))
        assert [r.stats.steps for r in found] == [r.stats.steps for r in alone]
        assert len({r.stats.steps for r in found}) > 1


STOP_STRINGS = ([" the"], ["."], ["a", "zzz"], ["day", ". "], ["He"], ["\n", "ma"], ["ball. "], ["ime, t"])


def test_stop_strings_end_hypotheses_where_they_end_them_in_transformers(stored: Pair) -> None:
    """Also where a stop string begins in one token and ends in another, or within one."""
    options = {"length_penalty": 0.0}
    searches = ties = 0
    for number, prompt in enumerate(stored.prompts[: 100 if IS_FULL else 10]):
        stop = STOP_STRINGS[number % len(STOP_STRINGS)]
        eos = list(stored.ours.config.eos_token_ids)
        theirs = hf_beams(stored, prompt, eos, stop_strings=stop, **options)
        ours = search(stored, prompt, stop=stop, **options)
        searches += 1
        for h, (row, score) in zip(ours, theirs, strict=True):
            if row[: len(h.ids)] != h.ids:
                with smallest_margin() as margin:
                    hf_beams(stored, prompt, eos, stop_strings=stop, **options)
                assert margin[0] < TIE, f"{prompt} {stop}\n  {list(ours)}\n  {theirs}"
                ties += 1
                break
            assert h.score == pytest.approx(score, abs=1e-4, rel=1e-5)
            assert len(set(row[len(h.ids) :])) <= 1  # padding
            if h.finish_reason == "stop_string":
                assert not any(s in h.text for s in stop)
    print(f"{searches} searches with stop strings, {ties} decided by a tie")
    assert ties <= 0.02 * searches + 1
