# SPDX-License-Identifier: Apache-2.0
"""Keys and values of a knowledge cache in transformers, and back."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import modicum as mo
import numpy as np
import pytest
from modicum.interop import from_dynamic_cache, to_dynamic_cache
from safetensors import safe_open
from tiny import write_tiny_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

DOCUMENT = "# Fees\n\n- Day ticket: 4 euros\n- Year card: 30 euros\n"
QUESTIONS = ["What does the year card cost?", "Why?", "ä" * 30]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small lose by a second thread, most of all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("interop") / "model")


@pytest.fixture(scope="module")
def theirs(tiny: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def kb(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> mo.cag.Knowledge:
    folder = tmp_path_factory.mktemp("documents")
    (folder / "fees.md").write_text(DOCUMENT)
    return mo.cag.build(mo.load(tiny), folder / "fees.md", folder / "fees.kv")


def tensors(kb: mo.cag.Knowledge, framework: str = "np") -> tuple[Any, Any]:
    with safe_open(kb.path, framework) as file:
        return file.get_tensor("k"), file.get_tensor("v")


def filled(model: Any, ids: list[int], cache: Any = None) -> Any:
    cache = transformers.DynamicCache() if cache is None else cache
    with torch.no_grad():
        model(torch.tensor([ids]), past_key_values=cache)
    return cache


def continued(model: Any, ids: list[int], cache: Any, count: int = 48) -> list[int]:
    """Greedily, over all ids, of which the cache holds the first."""
    out = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
        past_key_values=cache,
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
    )
    return out[0, len(ids) :].tolist()


@pytest.mark.parametrize("framework", ["np", "pt"])
@pytest.mark.parametrize("question", QUESTIONS)
def test_transformers_goes_on_from_the_file_as_from_its_own_cache(
    kb: mo.cag.Knowledge, theirs: Any, framework: str, question: str
):
    read = kb.branch().tokens
    cache = to_dynamic_cache(*tensors(kb, framework))
    assert cache.get_seq_length() == len(kb)
    ids = read + kb.question_ids(question)
    own = continued(theirs, ids, filled(theirs, read))
    assert continued(theirs, ids, cache) == own
    assert len(set(own)) > 1
    assert cache.get_seq_length() == len(ids) + 47  # it was used, and grew


def test_the_file_holds_what_transformers_computes(kb: mo.cag.Knowledge, theirs: Any):
    own = from_dynamic_cache(filled(theirs, kb.branch().tokens))
    for ours, other in zip(tensors(kb), own, strict=True):
        assert ours.shape == other.shape == (2, len(kb), 2, 8)
        assert np.abs(ours - other).max() < 1e-4 * np.abs(other).max()


def test_modicum_and_transformers_answer_alike_from_one_file(kb: mo.cag.Knowledge, theirs: Any):
    for question in QUESTIONS:
        ids = kb.branch().tokens + kb.question_ids(question)
        ours = kb.model.generate(ids, max_new_tokens=24, min_new_tokens=24).ids
        assert continued(theirs, ids, to_dynamic_cache(*tensors(kb)), 24) == ours


def test_a_bf16_cache_answers_the_demo_in_transformers(demo: Path, tmp_path: Path):
    kb = mo.cag.build(mo.load(demo / "model"), demo / "handbook", tmp_path / "a.kv")
    model = transformers.AutoModelForCausalLM.from_pretrained(demo / "model", dtype=torch.bfloat16).eval()
    k, v = tensors(kb, "pt")
    assert k.dtype == torch.bfloat16
    for entry in json.loads((demo / "questions.json").read_text("utf-8"))[:2]:
        ids = kb.branch().tokens + kb.question_ids(entry["question"])
        out = model.generate(
            torch.tensor([ids]), past_key_values=to_dynamic_cache(k, v), max_new_tokens=24, do_sample=False
        )
        assert kb.model.tokenizer.decode(out[0, len(ids) :].tolist()).strip() == entry["answer"]


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint16", "bfloat16"])
def test_there_and_back_is_the_same_bits(dtype: str):
    dice = np.random.default_rng(3)
    shape = (3, 7, 2, 4)
    if dtype in ("uint16", "bfloat16"):
        k, v = (dice.integers(0, 1 << 16, shape, dtype=np.uint16) for _ in "kv")
    else:
        k, v = (dice.normal(size=shape).astype(dtype) for _ in "kv")
    given = (k, v)
    if dtype == "bfloat16":
        given = tuple(torch.from_numpy(x.view(np.int16)).view(torch.bfloat16) for x in (k, v))
    cache = to_dynamic_cache(*given)
    wanted = {"uint16": "bfloat16"}.get(dtype, dtype)
    assert cache.layers[0].keys.dtype == getattr(torch, wanted)
    assert cache.layers[0].keys.shape == (1, 2, 7, 4)
    for before, after in zip((k, v), from_dynamic_cache(cache), strict=True):
        assert after.dtype == before.dtype
        assert after.flags.c_contiguous
        assert after.tobytes() == before.tobytes()


def test_any_memory_order_is_read_and_none_is_written(kb: mo.cag.Knowledge, theirs: Any):
    k, v = tensors(kb)
    expected = from_dynamic_cache(to_dynamic_cache(k, v))
    backwards = k[::-1, ::-1].copy()[::-1, ::-1]
    v.flags.writeable = False
    cache = to_dynamic_cache(backwards, v)
    for a, b in zip(from_dynamic_cache(cache), expected, strict=True):
        assert np.array_equal(a, b)
    writable = k.copy()
    cache = to_dynamic_cache(writable, v)
    cache.layers[0].keys.zero_()
    continued(theirs, [*kb.branch().tokens, 1], cache, 2)
    assert np.array_equal(writable, k)


def test_the_dtype_can_be_the_models(kb: mo.cag.Knowledge):
    k, v = tensors(kb)
    cache = to_dynamic_cache(k, v, dtype=torch.bfloat16)
    assert cache.layers[1].values.dtype == torch.bfloat16
    bits, _ = from_dynamic_cache(cache)
    assert np.array_equal(bits, torch.from_numpy(k).bfloat16().view(torch.int16).numpy().view(np.uint16))


GOOD = np.zeros((2, 5, 2, 8), np.float32)


@pytest.mark.parametrize(
    ("k", "v", "message"),
    [
        (GOOD[0], GOOD[0], r"k: expected \[layers, .*got \[5, 2, 8\]"),
        (GOOD, GOOD[:, :0], r"v: expected .*none of them 0, got \[2, 0, 2, 8\]"),
        (GOOD, GOOD[:, :4], r"v: expected shape \[2, 5, 2, 8\] as k, got \[2, 4, 2, 8\]"),
        (GOOD, GOOD.astype(np.float16), r"v: expected torch.float32 as k, got torch.float16"),
        (GOOD.astype(np.float64), GOOD, r"k: expected float32, float16 or bfloat16 .*got float64"),
        (GOOD, torch.zeros(2, 5, 2, 8, dtype=torch.int8), r"v: .* got torch.int8"),
        (GOOD.astype(">f4"), GOOD, r"k: expected bytes in this machine's order, got >f4"),
        (GOOD.tolist(), GOOD, r"k: expected a numpy array or a torch tensor, got list"),
    ],
)
def test_what_is_no_keys_and_values_is_refused(k: Any, v: Any, message: str):
    with pytest.raises(mo.InvalidArgument, match=r"^\[to_dynamic_cache\] " + message):
        to_dynamic_cache(k, v)


def layers(*shapes: tuple[int, ...], **options: Any) -> Any:
    cache = transformers.DynamicCache(**options)
    for i, shape in enumerate(shapes):
        cache.update(torch.zeros(shape), torch.zeros(shape), i)
    return cache


def test_caches_that_do_not_hold_every_token_are_refused():
    wrong = {
        "at least one token, got none": layers(),
        "batch: expected 1, got 2": layers((2, 2, 5, 8)),
        r"keys of layer 1: expected \[1, 2, 5, 8\] .*got \[1, 2, 4, 8\]": layers((1, 2, 5, 8), (1, 2, 4, 8)),
        "a transformers.DynamicCache, got list": [],
    }
    for message, cache in wrong.items():
        with pytest.raises(mo.InvalidArgument, match=message):
            from_dynamic_cache(cache)


def test_a_window_is_read_while_it_still_holds_all():
    config = transformers.MistralConfig(num_hidden_layers=1, sliding_window=4)
    assert from_dynamic_cache(layers((1, 2, 3, 8), config=config))[0].shape == (1, 3, 2, 8)
    with pytest.raises(mo.Unsupported, match=r"layer 0: .* got 3 of 9 tokens in a Dynamic"):
        from_dynamic_cache(layers((1, 2, 9, 8), config=config))


def test_without_transformers_the_error_tells_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for call in (lambda: to_dynamic_cache(GOOD, GOOD), lambda: from_dynamic_cache(None)):
        with pytest.raises(mo.Unsupported, match=r"got no transformers; pip install modicum\[interop\]"):
            call()
