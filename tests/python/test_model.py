# SPDX-License-Identifier: Apache-2.0
"""The Python face of a model and its tree."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import modicum as mo
import numpy as np
import pytest
from tiny import write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> mo.Model:
    return mo.load(write_tiny_model(tmp_path_factory.mktemp("tiny")), threads=2)


def test_logits_are_float32_and_their_rows_are_those_of_the_tree(model: mo.Model):
    ids = list(range(50))
    logits = model.logits(ids)
    assert logits.shape == (50, 258) and logits.dtype == np.float32
    leaf = model.tree()
    for i, token in enumerate(ids):
        leaf = leaf.extend([token])
        assert np.array_equal(leaf.logits(), logits[i])
    assert leaf.tokens == ids and len(leaf) == 50


def test_branches_in_one_pass_equal_branches_alone(model: mo.Model):
    trunk = model.tree().extend(list(range(100)))
    extensions = [[1], [2, 3], [4] * 70, [1]]
    together = mo.extend([(trunk, ids) for ids in extensions])
    for branch, ids in zip(together, extensions, strict=True):
        assert np.array_equal(branch.logits(), trunk.extend(ids).logits())
        assert branch.tokens == trunk.tokens + ids


def test_results_do_not_depend_on_the_number_of_threads(model: mo.Model):
    ids = list(range(200))
    expected = model.logits(ids)
    for threads in (1, 3):
        assert np.array_equal(mo.load(model.path, threads=threads).logits(ids), expected)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_dtype_converts_on_request(model: mo.Model, dtype: str):
    other = mo.load(model.path, dtype=dtype)
    assert other.dtype == dtype
    difference = np.abs(other.logits([1, 2, 3]) - model.logits([1, 2, 3])).max()
    assert difference <= {"f32": 0.0, "f16": 0.05, "bf16": 0.4}[dtype]
    assert other.kv_bytes_per_token == 2 * 2 * 16 * (4 if dtype == "f32" else 2)


def test_several_threads_may_use_one_model(model: mo.Model):
    expected = model.generate("Hello", max_new_tokens=20).ids
    results: list[list[int]] = []
    threads = [
        threading.Thread(target=lambda: results.append(model.generate("Hello", max_new_tokens=20).ids))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 6


def test_generation_can_start_from_a_branch(model: mo.Model):
    ids = list(range(40))
    whole = model.generate(ids, max_new_tokens=10)
    trunk = model.tree().extend(ids[:25])
    assert model.generate(ids[25:], max_new_tokens=10, start=trunk) == whole
    found = model.beam_search(ids[25:], beams=3, max_new_tokens=6, start=trunk)
    assert list(found) == list(model.beam_search(ids, beams=3, max_new_tokens=6))


def test_stop_strings_and_streaming_agree(model: mo.Model):
    whole = model.generate("Hello", max_new_tokens=60, stop_ids=[])
    stop = whole.text[10:12]
    pieces: list[str] = []
    cut = model.generate("Hello", max_new_tokens=60, stop=stop, stop_ids=[], stream=pieces.append)
    assert cut.finish_reason == "stop_string"
    assert "".join(pieces) == cut.text == whole.text[: whole.text.index(stop)]


def test_a_bound_on_the_tree_is_kept(model: mo.Model):
    root = model.tree(max_kv_bytes=300 * model.kv_bytes_per_token)
    leaf = root.extend([1] * 200)
    with pytest.raises(mo.OutOfMemory):
        leaf.extend([1] * 500)
    assert leaf.extend([2]).tokens == [1] * 200 + [2]


def test_bad_arguments_are_refused_and_say_what_was_expected(model: mo.Model):
    with pytest.raises(mo.InvalidArgument, match="0 to 257"):
        model.logits([258])
    with pytest.raises(mo.InvalidArgument, match="at least one token"):
        model.tree().extend([])
    with pytest.raises(mo.InvalidArgument):
        model.tree().logits()
    with pytest.raises(mo.ContextOverflow, match="at most 1024"):
        model.logits([1] * 1025)
    with pytest.raises(mo.InvalidArgument, match="f32, bf16 or f16"):
        mo.load(model.path, dtype="int3")
    with pytest.raises(mo.InvalidArgument, match="threads"):
        mo.load(model.path, threads=0)
    with pytest.raises(mo.InvalidArgument, match="early_stopping"):
        model.beam_search("a", early_stopping="soon")  # type: ignore[arg-type]
    other = mo.load(model.path)
    with pytest.raises(mo.InvalidArgument, match="tree"):
        mo.extend([(model.tree(), [1]), (other.tree(), [1])])


def test_every_exception_is_also_the_builtin_that_one_would_catch():
    pairs = {
        mo.InvalidArgument: ValueError,
        mo.IoError: OSError,
        mo.FormatError: ValueError,
        mo.Corrupt: mo.FormatError,
        mo.ContextOverflow: ValueError,
        mo.OutOfMemory: MemoryError,
        mo.Unsupported: NotImplementedError,
        mo.Cancelled: RuntimeError,
        mo.DeviceError: RuntimeError,
    }
    for error, builtin in pairs.items():
        assert issubclass(error, mo.Error) and issubclass(error, builtin)


def test_broken_model_directories_are_refused(tmp_path: Path):
    with pytest.raises(mo.IoError):
        mo.load(tmp_path)
    folder = write_tiny_model(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    weights = (folder / "model.safetensors").read_bytes()

    def load_with(**changes: object) -> mo.Model:
        (folder / "config.json").write_text(json.dumps(config | changes))
        return mo.load(folder)

    with pytest.raises(mo.Unsupported, match="model_type"):
        load_with(model_type="mamba")
    with pytest.raises(mo.Unsupported, match="hidden_act"):
        load_with(hidden_act="gelu")
    with pytest.raises(mo.FormatError):
        load_with(hidden_size=64)
    with pytest.raises(mo.FormatError, match=r"layers\.2"):
        load_with(num_hidden_layers=3)
    with pytest.raises(mo.FormatError, match=r"layers\.1"):
        load_with(num_hidden_layers=1)
    with pytest.raises(mo.FormatError, match="lm_head"):
        load_with(tie_word_embeddings=False)
    (folder / "config.json").write_text(json.dumps(config))
    for size in (0, 7, 100, len(weights) - 1):
        (folder / "model.safetensors").write_bytes(weights[:size])
        with pytest.raises(mo.FormatError):
            mo.load(folder)
    (folder / "model.safetensors").write_bytes(weights)
    assert mo.load(folder).logits([1]).shape == (1, 258)
