# SPDX-License-Identifier: Apache-2.0
"""Input that makes no sense is refused by name, and what was searched with works afterwards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

mo = pytest.importorskip("modicum")

from tiny import write_tiny_model  # noqa: E402

VOCABULARY = 20
ROW = np.log(np.arange(1, VOCABULARY + 1) / 210).astype(np.float32)
OPTIONS = {"beams": 3, "max_new_tokens": 5}


def plain(parents: Any, tokens: Any) -> Any:
    return np.tile(ROW, (1 if parents is None else len(tokens), 1))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return mo.load(write_tiny_model(tmp_path_factory.mktemp("tiny")))


def later(step: Any, at: int = 2) -> Any:
    """A step function that is `plain` until call `at`."""
    calls = [0]

    def wrapped(parents: Any, tokens: Any) -> Any:
        calls[0] += 1
        return (step if calls[0] > at else plain)(parents, tokens)

    return wrapped


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"beams": 0}, "beams"),
        ({"beams": -1}, "beams"),
        ({"beams": 300}, "beams"),
        ({"beams": "four"}, "beams"),
        ({"beams": 2.5}, "beams"),
        ({"beams": None}, "beams"),
        ({"num_return": 4}, "num_return"),
        ({"num_return": 0}, "num_return"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": "9"}, "max_new_tokens"),
        ({"min_new_tokens": 9}, "min_new_tokens"),
        ({"length_penalty": float("nan")}, "length_penalty"),
        ({"length_penalty": "long"}, "length_penalty"),
        ({"early_stopping": "yes"}, "early_stopping"),
        ({"early_stopping": None}, "early_stopping"),
        ({"early_stopping": 1.5}, "early_stopping"),
        ({"stop_ids": [10**6]}, "stop_ids"),
        ({"stop_ids": [-1]}, "stop_ids"),
        ({"stop_ids": ["a"]}, "stop_ids"),
        ({"stop_ids": 3}, "stop_ids"),
        ({"stop_ids": [2**40]}, "stop_ids"),
        ({"stop": [""]}, "stop"),
        ({"stop": [5]}, "stop"),
        ({"stop": 5}, "stop"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"no_repeat_ngram_size": -2}, "no_repeat_ngram_size"),
        ({"bad_words": [[]]}, "bad_words"),
        ({"bad_words": [5]}, "bad_words"),
        ({"bad_words": [["a"]]}, "bad_words"),
        ({"bad_words": None}, "bad_words"),
        ({"sequence_bias": {(): 1.0}}, "sequence_bias"),
        ({"sequence_bias": {(5,): float("nan")}}, "sequence_bias"),
        ({"sequence_bias": {(5,): "much"}}, "sequence_bias"),
        ({"sequence_bias": {5: 1.0}}, "sequence_bias"),
        ({"sequence_bias": [5]}, "sequence_bias"),
        ({"forced_bos": 10**6}, "forced_bos"),
        ({"forced_bos": "x"}, "forced_bos"),
        ({"forced_eos": [10**6]}, "forced_eos"),
        ({"forced_eos": 5}, "forced_eos"),
        ({"suppress": [-3]}, "suppress"),
        ({"suppress": None}, "suppress"),
        ({"begin_suppress": [10**6]}, "begin_suppress"),
        ({"groups": 2}, "groups"),
        ({"groups": 0}, "groups"),
        ({"diversity_penalty": -1.0}, "diversity_penalty"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 2.0, "temperature": 1.0}, "top_p"),
        ({"top_k": -1, "temperature": 1.0}, "top_k"),
        ({"seed": -1}, "seed"),
        ({"mode": "fast"}, "mode"),
        ({"mode": None}, "mode"),
        ({"when_full": "panic"}, "when_full"),
        ({"constraint": 5}, "constraint"),
        ({"stream": 5}, "stream"),
        ({"progress": 5}, "progress"),
    ],
    ids=str,
)
def test_an_option_that_makes_no_sense_is_named(model: Any, options: dict[str, Any], named: str) -> None:
    for search in (
        lambda **o: mo.search.beam(plain, [1], tokenizer=model.tokenizer, **o),
        lambda **o: model.beam_search("x", **o),
    ):
        with pytest.raises(mo.InvalidArgument, match=rf"\[\w+\] {named}\b.*expected"):
            search(**{**OPTIONS, **options})


@pytest.mark.parametrize("options", [{"stream": print}, {"stop": "x"}])
def test_text_without_a_tokenizer_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(mo.InvalidArgument, match=r"(stream|stop): expected a tokenizer"):
        mo.search.beam(plain, [1], **OPTIONS, **options)


def test_an_unknown_keyword_is_a_type_error(model: Any) -> None:
    for search in (lambda **o: mo.search.beam(plain, [1], **o), lambda **o: model.beam_search("x", **o)):
        with pytest.raises(TypeError, match="unexpected keyword argument 'num_beams'"):
            search(num_beams=3)


def test_a_prompt_without_tokens_is_refused(model: Any) -> None:
    with pytest.raises(mo.InvalidArgument, match="at least one token"):
        mo.search.beam(plain, [], **OPTIONS)
    for prompt in ("", []):
        with pytest.raises(mo.InvalidArgument, match="at least one token"):
            model.beam_search(prompt, **OPTIONS)
    with pytest.raises(mo.InvalidArgument, match="at least one token"):
        model.beam_search_many(["x", ""], **OPTIONS)
    assert model.beam_search_many([], **OPTIONS) == []


def test_a_token_outside_the_vocabulary_and_a_prompt_beyond_the_context_are_refused(model: Any) -> None:
    with pytest.raises(mo.InvalidArgument):
        model.beam_search([10**6], **OPTIONS)
    with pytest.raises(mo.ContextOverflow):
        model.beam_search([5] * 1021, **OPTIONS)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        (lambda rows: np.full((rows, VOCABULARY), np.nan, np.float32), "finite numbers or -inf"),
        (lambda rows: np.full((rows, VOCABULARY), np.inf, np.float32), "finite numbers or -inf"),
        (lambda rows: np.zeros((rows, VOCABULARY + 1), np.float32), "shape"),
        (lambda rows: np.zeros((rows + 1, VOCABULARY), np.float32), "shape"),
        (lambda rows: np.zeros((rows * VOCABULARY,), np.float32), "shape"),
        (lambda rows: np.zeros((rows, 1, VOCABULARY), np.float32), "shape"),
        (lambda rows: np.zeros((0, VOCABULARY), np.float32), "shape"),
        (lambda rows: np.full((rows, VOCABULARY), "a"), "numbers"),
        (lambda rows: np.full((rows, VOCABULARY), None), "numbers"),
        (lambda rows: np.full((rows, VOCABULARY), 1j), "numbers"),
        (lambda rows: [["a"] * VOCABULARY] * rows, "numbers"),
        (lambda rows: [[1.0]] * (rows - 1) + [[1.0, 2.0]] if rows > 1 else "abc", "expected"),
        (lambda _rows: None, "expected"),
        (lambda _rows: {}, "expected"),
    ],
)
@pytest.mark.parametrize("logits", [False, True])
def test_scores_that_make_no_sense_are_refused(scores: Any, expected: str, logits: bool) -> None:
    def step(parents: Any, tokens: Any) -> Any:
        return scores(1 if parents is None else len(tokens))

    with pytest.raises(mo.InvalidArgument, match=expected):
        mo.search.beam(later(step), [1], logits=logits, **OPTIONS)
    if expected != "shape":  # after the prompt other shapes will do
        with pytest.raises(mo.InvalidArgument):
            mo.search.beam(step, [1], logits=logits, **OPTIONS)


@pytest.mark.parametrize("kind", [np.float64, np.float16, np.int32, np.uint8])
def test_scores_of_other_types_are_converted(kind: Any) -> None:
    found = mo.search.beam(
        lambda parents, tokens: plain(parents, tokens).astype(kind), [1], logits=True, **OPTIONS
    )
    assert len(found[0].ids) == 5


def test_what_step_raises_passes_through_and_the_search_can_be_repeated() -> None:
    class LuckError(Exception):
        pass

    def unlucky(_parents: Any, _tokens: Any) -> Any:
        raise LuckError("really")

    expected = mo.search.beam(plain, [1], **OPTIONS)[0].ids
    for at in (0, 1, 3):
        with pytest.raises(LuckError, match="really"):
            mo.search.beam(later(unlucky, at), [1], **OPTIONS)
        assert mo.search.beam(plain, [1], **OPTIONS)[0].ids == expected


@pytest.mark.parametrize("hook", ["constraint", "stream", "progress"])
def test_what_a_hook_raises_passes_through_and_the_model_works_afterwards(model: Any, hook: str) -> None:
    def unlucky(*_args: Any) -> Any:
        raise KeyError("really")

    before = [h.ids for h in model.beam_search("Hello", **OPTIONS)]
    with pytest.raises(KeyError, match="really"):
        model.beam_search("Hello", **OPTIONS, **{hook: unlucky})
    assert [h.ids for h in model.beam_search("Hello", **OPTIONS)] == before


def test_progress_can_cancel(model: Any) -> None:
    with pytest.raises(mo.Cancelled):
        model.beam_search("Hello", progress=lambda _stage, done, _total: done < 3, **OPTIONS)


@pytest.mark.parametrize(
    ("constraint", "error"),
    [
        (lambda _ids: [], "hypotheses"),
        (lambda ids: [1] if len(ids) < 3 else [], "hypotheses"),
        (lambda _ids: [10**6], "token ids"),
        (lambda _ids: [-1], "token ids"),
        (lambda _ids: ["a"], "constraint"),
        (lambda _ids: 5, "constraint"),
    ],
)
@pytest.mark.parametrize("mode", ["transformers", "native"])
def test_a_constraint_that_cannot_be_met_is_an_error(
    model: Any, constraint: Any, error: str, mode: str
) -> None:
    with pytest.raises(mo.InvalidArgument, match=error):
        mo.search.beam(plain, [1], constraint=constraint, mode=mode, **OPTIONS)
    with pytest.raises(mo.InvalidArgument, match=error):
        model.beam_search("x", constraint=constraint, mode=mode, **OPTIONS)
    assert len(model.beam_search("x", **OPTIONS)) == 1


def test_processors_that_leave_nothing_are_an_error() -> None:
    with pytest.raises(mo.InvalidArgument, match="hypotheses"):
        mo.search.beam(plain, [1], suppress=list(range(VOCABULARY)), **OPTIONS)


def test_a_budget_that_is_too_small_fails_and_the_model_works_afterwards(model: Any) -> None:
    options = {"beams": 16, "num_return": 16, "max_new_tokens": 30, "stop_ids": []}
    expected = [h.ids for h in model.beam_search("Hello", **options)]
    tokens = 5 + model.beam_search("Hello", **options).stats.peak_tokens
    row = model.kv_bytes_per_token
    for budget in (1, 4 * row, 20 * row, (tokens - 20) * row):
        with pytest.raises(mo.OutOfMemory):
            model.beam_search("Hello", max_kv_bytes=budget, **options)
        assert [h.ids for h in model.beam_search("Hello", **options)] == expected
    enough = model.beam_search("Hello", max_kv_bytes=2 * tokens * row, **options)
    assert [h.ids for h in enough] == expected
    assert enough.stats.width == 16


def test_a_small_budget_narrows_the_search_where_it_may(model: Any) -> None:
    options = {"beams": 16, "max_new_tokens": 30, "stop_ids": [], "when_full": "narrow"}
    row = model.kv_bytes_per_token
    widths = []
    for tokens in (40, 60, 80, 400):
        found = model.beam_search("Hello", max_kv_bytes=tokens * row, **options)
        assert len(found[0].ids) == 30
        widths.append(found.stats.width)
    assert widths == sorted(widths)
    assert 1 <= widths[0] < 16
    assert widths[-1] == 16
    with pytest.raises(mo.OutOfMemory):
        model.beam_search("Hello", max_kv_bytes=20 * row, **options)


def test_a_branch_is_there_only_with_states_kept(model: Any) -> None:
    with pytest.raises(mo.InvalidArgument, match="keep_states=True"):
        _ = model.beam_search("Hello", **OPTIONS)[0].branch
    kept = model.beam_search("Hello", keep_states=True, **OPTIONS)[0]
    assert kept.branch.tokens == model.tokenizer.encode("Hello") + kept.ids
    np.testing.assert_array_equal(kept.branch.logits(), model.logits(kept.branch.tokens)[-1])


def test_a_bound_with_a_branch_to_start_from_is_refused(model: Any) -> None:
    with pytest.raises(mo.InvalidArgument, match="max_kv_bytes"):
        model.beam_search("x", start=model.tree().extend([5]), max_kv_bytes=10**6, **OPTIONS)
