# SPDX-License-Identifier: Apache-2.0
"""Lexicons in Python: what they hold, what they refuse, and how they are kept."""

from __future__ import annotations

import random
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import modicum as mo
import numpy as np
import pytest
from modicum.search import Constraint, Lexicon

CITIES = ["Oslo", "Paris", "Lima", "Paris", "São Paulo", "Parma", "Los Angeles", "東京"]


@pytest.fixture(scope="module")
def model(demo: Path) -> mo.Model:
    return mo.load(demo / "model")


@pytest.mark.parametrize("prefix", ["", " ", "\n", "Answer: "])
def test_a_lexicon_of_texts_is_the_set_of_them(model: mo.Model, prefix: str) -> None:
    lexicon = Lexicon.build(model, CITIES, prefix=prefix)
    assert isinstance(lexicon, Constraint)
    assert len(lexicon) == len(set(CITIES))
    assert lexicon.inputs == len(CITIES)
    assert lexicon.prefix == prefix
    assert {lexicon.text(i) for i in range(len(lexicon))} == set(CITIES)
    for text in CITIES:
        assert text in lexicon
        index = lexicon.index(text)
        assert lexicon.text(index) == text
        assert lexicon.ids(index) == model.tokenizer.encode(prefix + text, add_special_tokens=False)
        assert lexicon.ids(index) in lexicon
        where = [i for i, other in enumerate(CITIES) if other == text]
        assert lexicon.positions(text) == lexicon.positions(index) == where
    for other in ["", "Pari", "Paris ", "paris", "Berlin"]:
        assert other not in lexicon


def test_indices_are_dense_and_in_order(model: mo.Model) -> None:
    lexicon = Lexicon.build(model, CITIES)
    entries = [lexicon.ids(i) for i in range(len(lexicon))]
    assert entries == sorted(entries, key=lambda ids: (len(ids), ids))
    assert [lexicon.index(ids) for ids in entries] == list(range(len(lexicon)))


def test_a_lexicon_of_ids_needs_no_tokenizer() -> None:
    random.seed(1)
    entries = [[random.randrange(300) for _ in range(random.randint(1, 6))] for _ in range(3000)]
    lexicon = Lexicon.from_ids(entries)
    assert len(lexicon) == len({tuple(e) for e in entries})
    assert all(entries[lexicon.positions(e)[0]] == e for e in entries)
    assert [300] not in lexicon
    assert lexicon.tokenizer_fingerprint == ""
    with pytest.raises(mo.InvalidArgument, match="no model"):
        lexicon.text(0)
    with pytest.raises(mo.InvalidArgument, match="no model"):
        lexicon.index("a")
    arrays = Lexicon.from_ids(np.array([[1, 2], [3, 4]]))
    assert np.array([3, 4]) in arrays
    assert arrays.positions([3, 4]) == [1]


def test_a_lexicon_of_ids_with_a_model_knows_texts(model: mo.Model) -> None:
    ids = [model.tokenizer.encode(text, add_special_tokens=False) for text in CITIES]
    lexicon = Lexicon.from_ids(ids, model=model)
    assert "Oslo" in lexicon
    assert lexicon.tokenizer_fingerprint == model.tokenizer.fingerprint


def test_texts_come_from_any_iterable_and_are_read_once(model: mo.Model) -> None:
    def lines() -> Iterator[str]:
        for i in range(10_000):
            yield f"item {i}"

    stages: dict[str, tuple[int, int]] = {}
    lexicon = Lexicon.build(
        model.tokenizer, lines(), progress=lambda stage, done, total: stages.update({stage: (done, total)})
    )
    assert len(lexicon) == 10_000
    assert lexicon.positions("item 7777") == [7777]
    assert stages["encode"] == (10_000, 10_000)
    assert set(stages) == {"encode", "sort", "build"}


def test_what_makes_no_entry_is_refused_by_its_position(model: mo.Model) -> None:
    special = next(
        t
        for i in range(len(model.tokenizer))
        if model.tokenizer.is_special(i) and (t := model.tokenizer.token_of(i))
    )
    for bad in ["", f"a{special}b", "\ud800", 5, None]:
        with pytest.raises(mo.InvalidArgument, match=r"(text|entry) 2"):
            Lexicon.build(model, ["a", "b", bad])  # type: ignore[list-item]
    for wrong in [[], [-1], "ab", [1.5], [2**40], 7]:
        with pytest.raises(mo.InvalidArgument, match="entry 1"):
            Lexicon.from_ids([[1], wrong])  # type: ignore[list-item]
    for none in [(), []]:
        with pytest.raises(mo.InvalidArgument):
            Lexicon.build(model, none)
        with pytest.raises(mo.InvalidArgument):
            Lexicon.from_ids(none)
    with pytest.raises(mo.InvalidArgument, match="one text"):
        Lexicon.build(model, "Paris")


def test_an_index_or_entry_that_is_not_there_is_refused(model: mo.Model) -> None:
    lexicon = Lexicon.build(model, CITIES)
    for index in [-1, len(lexicon), 2**70]:
        for ask in (lexicon.ids, lexicon.text, lexicon.positions):
            with pytest.raises(mo.InvalidArgument):
                ask(index)
    with pytest.raises(ValueError, match="Berlin"):
        lexicon.index("Berlin")


def test_a_saved_lexicon_is_the_same_when_opened(model: mo.Model, tmp_path: Path) -> None:
    lexicon = Lexicon.build(model, CITIES, prefix=" ")
    lexicon.save(tmp_path / "a.lexicon")
    assert stat.S_IMODE((tmp_path / "a.lexicon").stat().st_mode) == 0o600
    for opened in [
        Lexicon.open(tmp_path / "a.lexicon", model),
        Lexicon.open(tmp_path / "a.lexicon", model.tokenizer),
    ]:
        assert opened.prefix == " "
        assert [opened.text(i) for i in range(len(opened))] == [lexicon.text(i) for i in range(len(lexicon))]
        assert opened.positions("Paris") == [1, 3]
    assert Lexicon.open(tmp_path / "a.lexicon").ids(0) == lexicon.ids(0)
    assert "8 entries" not in repr(lexicon) and "7 entries" in repr(lexicon) and "' '" in repr(lexicon)


def test_the_file_is_one_that_safetensors_reads(model: mo.Model, tmp_path: Path) -> None:
    from safetensors import safe_open

    lexicon = Lexicon.build(model, CITIES)
    lexicon.save(tmp_path / "a.lexicon")
    with safe_open(tmp_path / "a.lexicon", "np") as file:
        assert file.metadata()["format"] == "modicum.lexicon"
        assert file.get_tensor("tokens").shape == (lexicon.nodes - 1,)


def test_another_tokenizer_is_refused(model: mo.Model, data: Path, tmp_path: Path) -> None:
    Lexicon.build(model, CITIES).save(tmp_path / "a.lexicon")
    other = mo.Tokenizer(data / "tokenizers" / "gpt2")
    with pytest.raises(mo.FingerprintMismatch):
        Lexicon.open(tmp_path / "a.lexicon", other)
    Lexicon.from_ids([[1]]).save(tmp_path / "ids.lexicon")
    with pytest.raises(mo.FingerprintMismatch):
        Lexicon.open(tmp_path / "ids.lexicon", model)


def test_broken_files_are_refused(model: mo.Model, tmp_path: Path) -> None:
    path = tmp_path / "a.lexicon"
    with pytest.raises(mo.IoError):
        Lexicon.open(path)
    Lexicon.build(model, CITIES).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-40] + b"x" + whole[-39:])
    with pytest.raises(mo.Corrupt):
        Lexicon.open(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(mo.FormatError):
        Lexicon.open(path)


def test_a_build_stops_when_asked_to_and_lets_other_threads_run(model: mo.Model) -> None:
    texts = [f"name {i}" for i in range(100_000)]
    with pytest.raises(mo.Cancelled):
        Lexicon.build(model, texts, progress=lambda stage, done, total: False)

    def interrupt(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Lexicon.build(model, texts, progress=interrupt)
    ticks = 0
    done = threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not done.is_set():
            ticks += 1
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    Lexicon.build(model, texts, threads=1)
    done.set()
    thread.join()
    assert ticks > 5


def test_a_lexicon_may_be_built_while_another_is_used(model: mo.Model) -> None:
    lexicons = [Lexicon.build(model, CITIES, threads=threads) for threads in (1, 2, 3)]
    assert len({tuple(map(tuple, ([x.ids(i) for i in range(len(x))]))) for x in lexicons}) == 1


@pytest.mark.parametrize("mode", ["transformers", "native"])
@pytest.mark.parametrize("beams", [1, 3, 16])
def test_a_search_within_a_lexicon_writes_entries_alone(mode: str, beams: int) -> None:
    random = np.random.default_rng(0)
    entries = {tuple(random.integers(5, 400, random.integers(1, 6)).tolist()) for _ in range(20_000)}
    lexicon = mo.search.Lexicon.from_ids([list(e) for e in entries])

    def step(parents: np.ndarray | None, tokens: np.ndarray) -> np.ndarray:
        rows = np.random.default_rng(int(tokens.sum())).normal(
            size=(1 if parents is None else len(tokens), 400)
        )
        return rows.astype(np.float32)

    for prompt in range(5):
        for stop_ids in ([], [1, 2]):
            found = mo.search.beam(
                step,
                [prompt],
                beams=beams,
                num_return=beams,
                logits=True,
                mode=mode,
                constraint=lexicon,
                stop_ids=stop_ids,
                max_new_tokens=8,
            )
            assert all(tuple(i for i in h.ids if i not in stop_ids) in entries for h in found)
            assert all((h.ids[-1] in stop_ids) == bool(stop_ids) for h in found)


def test_a_lexicon_of_another_tokenizer_is_refused_by_the_search(demo: Path, data: Path) -> None:
    model = mo.load(demo / "model")
    other = mo.Tokenizer(data / "tokenizers" / "gpt2")
    lexicon = mo.search.Lexicon.build(other, ["Paris", "Lima"])
    with pytest.raises(mo.FingerprintMismatch, match="tokenizer"):
        model.beam_search("In", constraint=lexicon, stop_ids=[])
    with pytest.raises(mo.FingerprintMismatch, match="tokenizer"):
        model.beam_search("In", constraint=mo.search.all_of(lexicon, lambda _: None), stop_ids=[])
