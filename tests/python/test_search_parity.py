# SPDX-License-Identifier: Apache-2.0
"""Beam search over a function equals transformers' generate on a model that needs no arithmetic.

What transformers and modicum are given are the same float32 numbers, so that the beams must be the same token
for token but where two scores are equal: torch leaves open which of them wins.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

mo = pytest.importorskip("modicum")
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from hash_model import VOCABULARY, HashModel, HashStep  # noqa: E402
from parity import smallest_margin  # noqa: E402

BEAMS = (1, 2, 3, 4, 5, 8, 16, 33, 64)
LENGTH_PENALTIES = (-1.0, 0.0, 0.5, 1.0, 2.0)
EARLY = (False, True, "never")
STOPS = (0, 1, 2, 3)
NEW_TOKENS = (1, 2, 17)
BATCHES = (1, 3)
GRID = list(itertools.product(BEAMS, LENGTH_PENALTIES, EARLY, STOPS, NEW_TOKENS, BATCHES))
IS_FULL = bool(os.environ.get("MODICUM_FULL_GRID"))
STRIDE = 1 if IS_FULL else 29  # shares no factor with the grid's sides, so that it meets every value in turn
PAD = 0
THEIR_NAMES = {
    "beams": "num_beams",
    "num_return": "num_return_sequences",
    "stop_ids": "eos_token_id",
    "bad_words": "bad_words_ids",
    "forced_bos": "forced_bos_token_id",
    "forced_eos": "forced_eos_token_id",
    "suppress": "suppress_tokens",
    "begin_suppress": "begin_suppress_tokens",
}
Scored = list[tuple[list[int], float | None]]


def prompts_of(number: int, count: int) -> list[list[int]]:
    """Of several lengths, one token among them."""
    random = np.random.default_rng(number)
    lengths = ((number + 3 * i) % 8 + 1 for i in range(count))
    return [random.integers(4, VOCABULARY, length).tolist() for length in lengths]


def generate(prompts: list[list[int]], options: dict[str, Any]) -> list[Scored]:
    """transformers' hypotheses of each prompt, the prompts padded on the left."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    stops = options.get("stop_ids", [])
    output = HashModel().generate(
        ids,
        attention_mask=mask,
        pad_token_id=PAD,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        **{THEIR_NAMES.get(name, name): value for name, value in options.items() if value != []},
    )
    is_greedy = options["beams"] == 1
    scores = [None] * len(prompts) if is_greedy else output.sequences_scores.tolist()
    fill = PAD if is_greedy else stops[0] if stops else -1  # PAD is 0, which transformers takes for none
    rows = output.sequences[:, longest:].tolist()
    found = [
        (without_fill(row, stops, fill) if is_real(score) else row, score)
        for row, score in zip(rows, scores, strict=True)
    ]
    each = len(found) // len(prompts)
    return [found[i * each : (i + 1) * each] for i in range(len(prompts))]


def is_real(score: float | None) -> bool:
    """Where it has too few hypotheses, transformers fills up with copies scored about -1e9."""
    return score is None or score > -1e5


def without_fill(row: list[int], stops: list[int], fill: int) -> list[int]:
    """`row` up to its first stop token, after which there must be nothing but `fill`."""
    ends = [i for i, token in enumerate(row) if token in stops]
    length = ends[0] + 1 if ends else len(row)
    assert set(row[length:]) <= {fill}
    return row[:length]


@dataclass
class Tally:
    """Compares searches; where they differ, transformers must have chosen between scores `tie` apart."""

    normalise: bool = True
    tie: float = 0.0
    prompts: int = 0
    ties: list[str] = field(default_factory=list)

    def compare(self, prompts: list[list[int]], **options: Any) -> None:
        theirs = generate(prompts, options)
        for i, prompt in enumerate(prompts):
            self.prompts += 1
            normalise = self.normalise and options["beams"] > 1  # greedy choice is by logits
            found = mo.search.beam(HashStep(normalise=normalise), prompt, logits=not normalise, **options)
            self.check_one(prompts, i, [(h.ids, h.score) for h in found], theirs[i], options)

    def check_one(
        self, prompts: list[list[int]], i: int, ours: Scored, theirs: Scored, options: dict[str, Any]
    ) -> None:
        real = [(ids, score) for ids, score in theirs if is_real(score)]
        if [ids for ids, _ in ours] == [ids for ids, _ in real]:
            for (_, score), (_, expected) in zip(ours, real, strict=True):
                assert expected is None or score == pytest.approx(expected, abs=1e-6, rel=1e-6)
            return
        with smallest_margin() as margin:
            generate([prompts[i]], options)
        case = f"{prompts[i]} {options}: margin {margin[0]:.1e}\n  {ours}\n  {real}"
        assert margin[0] <= self.tie, case
        self.ties.append(case)

    def check(self) -> None:
        print(f"{self.prompts} searches, {len(self.ties)} decided by a tie")
        assert len(self.ties) <= 0.01 * self.prompts, "\n".join(self.ties)


def run_grid(tally: Tally, offset: int) -> None:
    for number in range(offset, len(GRID), STRIDE):
        beams, length_penalty, early, n_stops, new_tokens, batch = GRID[number]
        tally.compare(
            prompts_of(number, batch),
            beams=beams,
            length_penalty=length_penalty,
            early_stopping=early,
            stop_ids=[1, 2, 3][:n_stops],
            max_new_tokens=new_tokens,
            num_return=(1, max(1, beams // 2), beams)[number // STRIDE % 3],
        )
    tally.check()


def test_the_same_scores_give_the_same_beams_over_the_grid() -> None:
    run_grid(Tally(), 0)


def test_the_same_logits_give_the_same_beams_over_the_grid() -> None:
    """Where log_softmax, which differs in the last bit, has to decide, either may be right."""
    run_grid(Tally(normalise=False, tie=1e-5), 7 % STRIDE)


PROCESSORS: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 1.3},
    "reward for repetition": {"repetition_penalty": 0.8},
    "no_repeat_ngram_size 1": {"no_repeat_ngram_size": 1},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "min_new_tokens": {"min_new_tokens": 5},
    "bad_words": {"bad_words": [[3], [1], [2, 2], [140, 2, 1]]},
    "sequence_bias": {"sequence_bias": {(2,): -1.25, (3, 3): 2.5, (9, 2, 3): -4.0, (77,): 3.0}},
    "forced_bos": {"forced_bos": 42},
    "forced_eos": {"forced_eos": [1]},
    "suppress": {"suppress": [2, 50, 3]},
    "begin_suppress": {"begin_suppress": [1, 2, 60]},
}
PAIRS = [
    *((name, name) for name in PROCESSORS),
    *itertools.combinations(PROCESSORS, 2),
]


def processors_of(pair: tuple[str, str]) -> dict[str, Any]:
    return {name: value for part in pair for name, value in PROCESSORS[part].items()}


def compare_processors(pairs: list[tuple[str, str]]) -> None:
    tally = Tally()
    for number, pair in enumerate(pairs):
        for beams, length in ((1, 8), (3, 8), (6, 12)) if IS_FULL else ((3, 8),):
            for prompt in ([130 + number % 30], [5, 9, 2, 9, 2], [3, 3, 140, 2]):
                stops = [[1], [1, 3], []][(number + beams + len(prompt)) % 3]
                tally.compare(
                    [prompt],
                    beams=beams,
                    num_return=beams,
                    stop_ids=stops,
                    max_new_tokens=length,
                    early_stopping=EARLY[number % 3],
                    **processors_of(pair),
                )
    tally.check()


def test_each_processor_acts_as_in_transformers() -> None:
    compare_processors(PAIRS[: len(PROCESSORS)])


def test_processors_act_in_the_order_of_transformers() -> None:
    compare_processors(PAIRS[len(PROCESSORS) :])


def random_options(random: np.random.Generator) -> dict[str, Any]:
    """Any options at all, most of them at once now and then."""

    def tokens(most: int) -> list[int]:
        return random.choice(VOCABULARY, random.integers(1, most + 1), replace=False).tolist()

    def sequences() -> list[list[int]]:
        return [
            random.choice([1, 2, 3, *tokens(1)], random.integers(1, 4)).tolist()
            for _ in range(random.integers(1, 5))
        ]

    beams, length = int(random.choice([2, 3, 5, 8, 13])), int(random.choice([1, 2, 5, 14]))
    options = {
        "beams": beams,
        "num_return": int(random.integers(1, beams + 1)),
        "max_new_tokens": length,
        "stop_ids": random.choice([1, 2, 3, 70, 71], random.integers(5), replace=False).tolist(),
        "length_penalty": float(random.choice([-2, -0.5, 0, 0.3, 1, 1.7, 3])),
        "early_stopping": EARLY[random.integers(3)],
    }
    others: dict[str, Any] = {
        "repetition_penalty": float(random.choice([0.7, 1.1, 2.0])),
        "no_repeat_ngram_size": int(random.integers(1, 4)),
        "min_new_tokens": int(random.integers(1, length + 1)),
        "bad_words": sequences(),
        "sequence_bias": {tuple(s): float(random.uniform(-3, 3)) for s in sequences()},
        "forced_bos": tokens(1)[0],
        "forced_eos": tokens(1),  # of several each would be as good as the others
        "suppress": tokens(100),
        "begin_suppress": tokens(20),
    }
    chosen = {name: value for name, value in others.items() if random.random() < 0.25}
    forced = {chosen.get("forced_bos"), *chosen.get("forced_eos", [])}
    for name in ("suppress", "begin_suppress"):  # what is forced and suppressed is nothing at all
        chosen[name] = [t for t in chosen.get(name, []) if t not in forced]
    return {**options, **chosen}


def test_all_options_together_act_as_in_transformers() -> None:
    tally = Tally()
    random = np.random.default_rng(0)
    for _ in range(3000 if IS_FULL else 100):
        prompt = random.choice([1, 2, 3, 90, 91], random.choice([1, 2, 6, 12])).tolist()
        tally.compare([prompt], **random_options(random))
    tally.check()


@pytest.mark.parametrize("beams", [2, 5])
@pytest.mark.parametrize("stops", [[], [2]])
def test_a_function_that_allows_tokens_acts_as_prefix_allowed_tokens_fn(beams: int, stops: list[int]) -> None:
    prompt = [7, 8]

    def allowed(ids: list[int]) -> list[int]:
        """A third of the vocabulary, another one after each token."""
        return [t for t in range(VOCABULARY) if (t + sum(ids)) % 3 == 0] + [2] * bool(ids)

    options = {"beams": beams, "num_return": beams, "max_new_tokens": 7, "stop_ids": stops}
    for processor in ({}, *(PROCESSORS[p] for p in ("repetition_penalty", "bad_words", "min_new_tokens"))):
        theirs = generate(
            [prompt],
            {
                **options,
                **processor,
                "prefix_allowed_tokens_fn": lambda _batch, ids: allowed(ids[len(prompt) :].tolist()),
            },
        )[0]
        ours = mo.search.beam(HashStep(), prompt, constraint=allowed, **options, **processor)
        assert [h.ids for h in ours] == [ids for ids, _ in theirs]
        assert [h.score for h in ours] == pytest.approx([score for _, score in theirs], abs=1e-6)


def test_hypotheses_that_the_constraint_makes_impossible_are_dropped_and_not_filled_up() -> None:
    """Two texts are allowed, and four asked for: transformers fills up with copies scored about -1e9."""
    prompt = [7]

    def allowed(ids: list[int]) -> list[int]:
        return [10, 20] if not ids else [30]

    options = {"beams": 4, "num_return": 4, "max_new_tokens": 3, "stop_ids": []}
    theirs = generate(
        [prompt], {**options, "prefix_allowed_tokens_fn": lambda _b, ids: allowed(ids[1:].tolist())}
    )[0]
    ours = mo.search.beam(HashStep(), prompt, constraint=allowed, **options)
    assert sorted(h.ids for h in ours) == [[10, 30, 30], [20, 30, 30]]
    assert [h.ids for h in ours] == [ids for ids, score in theirs if is_real(score)]
    assert len(theirs) == 4


def test_padding_is_the_first_stop_token_where_the_pad_token_is_0() -> None:
    """A quirk of transformers that whoever compares outputs has to know; here nothing is padded."""
    options = {"beams": 4, "num_return": 4, "max_new_tokens": 9, "stop_ids": [2, 1]}
    ids = torch.tensor([[5, 6, 7]])
    named = {THEIR_NAMES.get(name, name): value for name, value in options.items()}
    output = HashModel().generate(ids, pad_token_id=PAD, do_sample=False, **named)[:, 3:].tolist()
    ours = [h.ids for h in mo.search.beam(HashStep(), ids[0].tolist(), **options)]
    longest = max(map(len, ours))
    assert min(map(len, ours)) < longest
    assert output == [h + [2] * (longest - len(h)) for h in ours]
