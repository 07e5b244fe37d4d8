# SPDX-License-Identifier: Apache-2.0
"""The engine's search over a transformers model is transformers' own."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import modicum as mo
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from parity import hf_generate  # noqa: E402

PROMPT = [5, 9, 40, 3, 17]


def llama(**changes: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.6,
        **changes,
    )
    return transformers.LlamaForCausalLM(config).eval()


def generated(model: Any, stop_ids: Sequence[int] = (), **options: Any) -> list[tuple[list[int], float]]:
    found = hf_generate(model, PROMPT, stop_ids, **options)
    return list(zip(found.sequences[:, len(PROMPT) :].tolist(), found.sequences_scores.tolist(), strict=True))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.4},
        {"no_repeat_ngram_size": 2},
        {"length_penalty": 2.0, "early_stopping": True},
    ],
)
def test_hypotheses_are_those_of_generate(options: dict[str, Any]) -> None:
    model = llama()
    searcher = mo.search.from_transformers(model)
    assert searcher.tier == "tree" and searcher.notes == []
    ours = searcher.beam_search(PROMPT, beams=5, num_return=5, max_new_tokens=12, stop_ids=[], **options)
    theirs = generated(model, num_beams=5, num_return_sequences=5, max_new_tokens=12, **options)
    assert [h.ids for h in ours] == [ids for ids, _ in theirs]
    assert [h.score for h in ours] == pytest.approx([score for _, score in theirs], abs=1e-4)


def test_the_models_own_end_tokens_are_the_default() -> None:
    model = llama()
    free = mo.search.from_transformers(model).beam_search(PROMPT, beams=3, max_new_tokens=8, stop_ids=[])
    model.generation_config.eos_token_id = [free[0].ids[3], 95]
    found = mo.search.from_transformers(model).beam_search(PROMPT, beams=3, max_new_tokens=8)
    assert any(h.finish_reason == "stop_token" for h in found)
    theirs = generated(model, num_beams=3, max_new_tokens=8, stop_ids=[free[0].ids[3], 95])
    assert found[0].ids == theirs[0][0][: len(found[0].ids)]


def test_constraints_hold_over_it_and_nothing_is_held_afterwards() -> None:
    searcher = mo.search.from_transformers(llama())
    lexicon = mo.search.Lexicon.from_ids([[7, 8], [7, 9, 10], [30]])
    found = searcher.beam_search(PROMPT, beams=3, num_return=3, constraint=lexicon, stop_ids=[])
    assert sorted(h.ids for h in found) == [[7, 8], [7, 9, 10], [30]]
    assert searcher.step.stats.tokens_held == 0


def test_an_architecture_that_does_not_allow_a_tree_says_so() -> None:
    torch.manual_seed(0)
    config = transformers.MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2, state_size=8)
    model = transformers.MambaForCausalLM(config).eval()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        searcher = mo.search.from_transformers(model)
    assert searcher.tier == "batch" and searcher.notes and told
    ours = searcher.beam_search(PROMPT, beams=3, max_new_tokens=6, stop_ids=[])
    assert ours[0].ids == generated(model, num_beams=3, max_new_tokens=6)[0][0]


def test_what_the_model_raises_passes_through_and_the_next_search_works() -> None:
    model = llama()
    searcher = mo.search.from_transformers(model)
    before = searcher.beam_search(PROMPT, beams=3, max_new_tokens=6, stop_ids=[])[0].ids
    with pytest.raises(mo.InvalidArgument):
        searcher.beam_search([5, 96], beams=3, max_new_tokens=6, stop_ids=[])
    with pytest.raises(mo.Cancelled):
        searcher.beam_search(
            PROMPT, beams=3, max_new_tokens=6, stop_ids=[], progress=lambda _stage, done, _total: done < 3
        )
    assert searcher.beam_search(PROMPT, beams=3, max_new_tokens=6, stop_ids=[])[0].ids == before
