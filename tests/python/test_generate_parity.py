# SPDX-License-Identifier: Apache-2.0
"""Greedy generation equals transformers' token for token; sampling draws from the same distribution."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

mo = pytest.importorskip("modicum")
np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from parity import KINDS, Pair, random_pair, stored_pair  # noqa: E402
from transformers.generation import logits_process as hf  # noqa: E402

TEXTS = ("Once upon a time", "The little dog was")
TIE = 1e-4


@pytest.fixture(scope="module", params=KINDS)
def random_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return random_pair(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module", params=("stories260K", "babyllama-361"))
def stored_model(request: pytest.FixtureRequest, data: Path) -> Pair:
    folder = data / "models" / request.param
    if not folder.is_dir():
        pytest.skip(f"{request.param} is not in MODICUM_DATA")
    return stored_pair(folder, TEXTS)


def check_greedy(pair: Pair, prompt: list[int], stop_ids: list[int], **options: Any) -> Any:
    """Compares log-probabilities and ids, which may part only where transformers' two best are within TIE."""
    output = pair.hf_generate(prompt, stop_ids, num_beams=1, **options)
    expected = output.sequences[0, len(prompt) :].tolist()
    result = pair.ours.generate(prompt, stop_ids=stop_ids, **options)
    ids = list(result.ids)
    same = next((i for i, (a, b) in enumerate(zip(ids, expected, strict=False)) if a != b), len(expected))
    if ids != expected:
        best = output.scores[same][0].topk(2).values
        assert best[0] - best[1] < TIE, f"{prompt} {stop_ids} {options}\n  {ids}\n  {expected}"
    log_probabilities = torch.log_softmax(torch.cat(output.logits), -1)
    for i in range(same):
        assert result.log_probabilities[i] == pytest.approx(log_probabilities[i, ids[i]].item(), abs=1e-4)
    return result


@pytest.mark.parametrize("repetition_penalty", [1.0, 1.3, 0.9])
def test_greedy_ids_and_log_probabilities_equal_transformers(
    random_model: Pair, repetition_penalty: float
) -> None:
    for prompt in random_model.prompts:
        result = check_greedy(
            random_model, prompt, [], max_new_tokens=40, repetition_penalty=repetition_penalty
        )
        assert result.finish_reason == "length"


@pytest.mark.parametrize("min_new_tokens", [0, 3, 20])
def test_stop_tokens_end_where_transformers_ends(random_model: Pair, min_new_tokens: int) -> None:
    for prompt in random_model.prompts:
        stops = random_model.ours.generate(prompt, max_new_tokens=12, stop_ids=[]).ids[9:11]
        result = check_greedy(
            random_model, prompt, list(stops), max_new_tokens=24, min_new_tokens=min_new_tokens
        )
        assert result.finish_reason == ("stop_token" if result.ids[-1] in stops else "length")
        assert len(result.ids) >= min_new_tokens


def test_greedy_text_of_stored_models_equals_transformers_for_200_tokens(stored_model: Pair) -> None:
    for text, prompt in zip(TEXTS, stored_model.prompts, strict=True):
        result = check_greedy(stored_model, prompt, [], max_new_tokens=200)
        assert len(result.ids) == 200
        expected = stored_model.tokenizer.decode(result.ids, skip_special_tokens=True)
        assert stored_model.ours.generate(text, max_new_tokens=200, stop_ids=[]).text == expected


def test_streamed_pieces_joined_are_the_text(stored_model: Pair) -> None:
    pieces: list[str] = []
    result = stored_model.ours.generate(TEXTS[0], max_new_tokens=60, stop_ids=[], stream=pieces.append)
    assert "".join(pieces) == result.text


def test_a_stop_string_ends_the_text_before_it(stored_model: Pair) -> None:
    whole = stored_model.ours.generate(TEXTS[0], max_new_tokens=60, stop_ids=[]).text
    stop = whole[20:24]
    pieces: list[str] = []
    result = stored_model.ours.generate(
        TEXTS[0], max_new_tokens=60, stop_ids=[], stop=[stop], stream=pieces.append
    )
    assert result.text == whole[: whole.index(stop)] == "".join(pieces)
    assert result.finish_reason == "stop_string"


def test_a_stream_that_returns_false_stops(stored_model: Pair) -> None:
    result = stored_model.ours.generate(TEXTS[0], max_new_tokens=60, stop_ids=[], stream=lambda piece: False)
    assert result.finish_reason == "cancelled"
    assert len(result.ids) < 60


FILTERS = [
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 5},
    {"temperature": 1.5, "top_p": 0.8},
    {"temperature": 2.0, "min_p": 0.1},
    {"temperature": 3.0, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
]


def hf_warped(
    logits: torch.Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Any:
    """transformers' warpers in the order of GenerationMixin._get_logits_processor. [1, vocabulary]"""
    if temperature != 1.0:
        logits = hf.TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        logits = hf.TopKLogitsWarper(top_k)(None, logits)
    if top_p < 1.0:
        logits = hf.TopPLogitsWarper(top_p)(None, logits)
    if min_p:
        logits = hf.MinPLogitsWarper(min_p)(None, logits)
    return logits


@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_sampled_tokens_follow_the_distribution_of_transformers_warpers(
    random_model: Pair, options: dict[str, Any]
) -> None:
    draws = 1500
    prompt = random_model.prompts[1]
    logits = random_model.theirs(torch.tensor([prompt])).logits[:, -1]
    probabilities = torch.softmax(hf_warped(logits, **options), -1)
    expected = draws * probabilities[0].double().detach().numpy()
    sampled = [
        random_model.ours.generate(prompt, max_new_tokens=1, stop_ids=[], seed=seed, **options).ids[0]
        for seed in range(draws)
    ]
    observed = np.zeros_like(expected)
    for token, count in Counter(sampled).items():
        observed[token] = count
    assert not observed[expected == 0].any(), "a token was drawn that the filters remove"
    assert observed[expected > 20].all(), "a token was never drawn that the filters keep"
    common = expected >= 5
    cells = np.append(expected[common], expected[~common].sum())
    counts = np.append(observed[common], observed[~common].sum())
    cells, counts = cells[cells > 0], counts[cells > 0]
    freedom = len(cells) - 1
    chi_squared = ((counts - cells) ** 2 / cells).sum()
    assert chi_squared < freedom + 4.5 * np.sqrt(2 * freedom) + 5


def test_one_seed_samples_one_text(random_model: Pair) -> None:
    options = {"max_new_tokens": 30, "temperature": 3.0, "stop_ids": []}
    first = random_model.ours.generate([5, 6], seed=7, **options).ids
    assert random_model.ours.generate([5, 6], seed=7, **options).ids == first
    assert random_model.ours.generate([5, 6], seed=8, **options).ids != first


def test_warped_logits_equal_transformers() -> None:
    random = np.random.default_rng(0)
    for case in range(400):
        scale = random.choice([0.3, 1, 3, 8])
        logits = (random.standard_normal(random.integers(1, 5000)) * scale).astype(np.float32)
        options = {
            "temperature": float(random.choice([0.1, 0.7, 1.0, 1.5])),
            "top_k": int(random.choice([0, 1, 3, 40, 10000])),
            "top_p": float(random.choice([0.0, 0.1, 0.5, 0.9, 1.0])),
            "min_p": float(random.choice([0.0, 0.05, 0.3])),
        }
        expected = hf_warped(torch.from_numpy(logits)[None], **options)[0].numpy()
        np.testing.assert_array_equal(
            mo.decode.warp(logits, **options), expected, err_msg=f"{case} {options}"
        )


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"repetition_penalty": 0.0},
        {"max_new_tokens": 0},
        {"max_new_tokens": 2, "min_new_tokens": 3},
        {"stop_ids": [-1]},
    ],
)
def test_options_that_make_no_sense_are_value_errors(random_model: Pair, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        random_model.ours.generate([5, 6], **options)
