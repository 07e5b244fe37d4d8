# SPDX-License-Identifier: Apache-2.0
"""Changing a knowledge cache: every way gives what a fresh build of the same documents gives."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import modicum as mo
import numpy as np
import pytest
from modicum.cli import main
from tiny import write_tiny_model

PAGES = {
    "fees.md": "# Fees\n\n- Day ticket: 4 euros\n- Year card: 30 euros\n",
    "hours.md": "# Hours\n\nMonday: 9:00 to 17:00\n",
    "news/today.md": "Closed for an hour\n",
    "rules.md": "# Rules\n\nNo dogs in the hall\n",
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module", params=["f32", "bf16", "demo"])
def model(request: pytest.FixtureRequest, tiny: Path) -> mo.Model:
    if request.param == "demo":
        return mo.load(request.getfixturevalue("demo") / "model", threads=1)
    return mo.load(tiny, dtype=request.param, threads=1)


@pytest.fixture(scope="module")
def small(tiny: Path) -> mo.Model:
    return mo.load(tiny, threads=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    for name, text in PAGES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def names(path: Path) -> list[str]:
    return [d["name"] for d in mo.cag.inspect(path)["documents"]]


def require_fresh(path: Path, model: mo.Model) -> None:
    """Equal bits of the logits after a question, of a cache that was changed and a fresh one."""
    changed = mo.cag.open(path, model)
    fresh = mo.cag.build(model, changed.documents, path.with_name("fresh.kv"))
    question = changed.question_ids("What does a day ticket cost?")
    ours, theirs = (kb.branch().extend(question).logits() for kb in (changed, fresh))
    assert np.array_equal(ours.view(np.uint32), theirs.view(np.uint32))
    assert path.read_bytes() == fresh.path.read_bytes()
    anew = model.tree().extend(changed.branch().tokens + question).logits()
    assert np.array_equal(ours.view(np.uint32), anew.view(np.uint32))


def through_python(path: Path, model: mo.Model, change: str, *what: object) -> None:
    getattr(mo.cag, change)(path, model, [str(w) for w in what])


def through_the_command_line(path: Path, model: mo.Model, change: str, *what: object) -> None:
    dtype = mo.cag.inspect(path)["dtype"]
    arguments = ["cag", change, "--model", model.path, "--dtype", dtype, "--cache", path, *what]
    assert main([str(a) for a in arguments]) == 0


@pytest.mark.parametrize("change", [through_python, through_the_command_line])
def test_every_change_gives_the_bits_of_a_fresh_build(
    change: Callable[..., None], model: mo.Model, folder: Path, tmp_path: Path
):
    path = tmp_path / "a.kv"
    mo.cag.build(model, [folder / "fees.md", folder / "rules.md"], path)
    change(path, model, "add", folder / "hours.md")
    assert names(path) == ["fees.md", "rules.md", "hours.md"]
    require_fresh(path, model)
    change(path, model, "remove", "rules.md")
    assert names(path) == ["fees.md", "hours.md"]
    require_fresh(path, model)
    (folder / "fees.md").write_text("# Fees\n\nAll is free now\n")
    change(path, model, "update", folder / "fees.md", folder / "rules.md")
    assert names(path) == ["fees.md", "hours.md", "rules.md"]
    assert mo.cag.open(path, model).documents[0].text == "# Fees\n\nAll is free now\n"
    require_fresh(path, model)
    for shorter in ("# Fees\n", "# Fees\n\nAll is free now, and then some\n"):
        (folder / "fees.md").write_text(shorter)
        change(path, model, "update", folder / "fees.md")
        require_fresh(path, model)


def test_a_folder_is_read_again_with_what_was_replaced_added_and_taken_away(
    model: mo.Model, folder: Path, tmp_path: Path
):
    path = tmp_path / "a.kv"
    (tmp_path / "alone.md").write_text("Alone\n")
    built = mo.cag.build(model, [folder, tmp_path / "alone.md"], path)
    (folder / "hours.md").write_text("# Hours\n\nTuesday: 10:00 to 12:00\n")
    (folder / "map.md").write_text("The hall is on the left\n")
    (folder / "news" / "today.md").unlink()
    changes = mo.cag.update(path, model, folder)
    assert (changes.added, changes.replaced, changes.removed) == (["map.md"], ["hours.md"], ["news/today.md"])
    assert changes.unchanged == ["fees.md", "rules.md", "alone.md"]
    assert 0 < changes.computed_tokens < changes.tokens == len(mo.cag.open(path, model))
    assert names(path) == ["fees.md", "hours.md", "rules.md", "alone.md", "map.md"]
    require_fresh(path, model)
    assert len(built.documents) == 5


@pytest.mark.parametrize("relative_first", [True, False])
def test_a_folder_is_the_same_folder_by_its_relative_and_its_absolute_path(
    relative_first: bool, small: mo.Model, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    first, second = (Path("documents"), folder) if relative_first else (folder, Path("documents"))
    mo.cag.build(small, first, tmp_path / "a.kv")
    (folder / "rules.md").unlink()
    assert mo.cag.update(tmp_path / "a.kv", small, second).removed == ["rules.md"]


def test_without_sources_every_documents_own_file_is_read_again(
    small: mo.Model, folder: Path, tmp_path: Path
):
    path = tmp_path / "a.kv"
    mo.cag.build(small, folder, path, volatile=["news/*"])
    (folder / "news" / "today.md").write_text("Open\n")
    (folder / "new.md").write_text("New\n")
    changes = mo.cag.update(path, small)
    assert (changes.added, changes.replaced, changes.removed) == ([], ["news/today.md"], [])
    assert changes.computed_tokens < 40  # a token a byte: what stands from "Open" on
    assert names(path)[-1] == "news/today.md"
    require_fresh(path, small)
    good = path.read_bytes()
    (folder / "rules.md").unlink()
    with pytest.raises(mo.IoError, match=r"rules\.md"):
        mo.cag.update(path, small)
    assert path.read_bytes() == good


def test_volatile_documents_stay_behind_all_others(small: mo.Model, folder: Path, tmp_path: Path):
    path = tmp_path / "a.kv"
    mo.cag.build(small, folder, path, volatile=["fees.md"])
    assert names(path) == ["hours.md", "news/today.md", "rules.md", "fees.md"]
    (tmp_path / "map.md").write_text("Left\n")
    mo.cag.add(path, small, tmp_path / "map.md")
    assert names(path) == ["hours.md", "news/today.md", "rules.md", "map.md", "fees.md"]
    mo.cag.update(path, small, folder)  # stays volatile without being named again
    assert names(path)[-1] == "fees.md"
    require_fresh(path, small)
    mo.cag.update(path, small, folder, volatile=["news/*", "fees.md"])
    assert names(path)[:3] == ["hours.md", "rules.md", "map.md"]
    assert [d.volatile for d in mo.cag.open(path, small).documents] == [False] * 3 + [True] * 2
    require_fresh(path, small)


def test_what_is_up_to_date_is_not_written(small: mo.Model, folder: Path, tmp_path: Path):
    path = tmp_path / "a.kv"
    mo.cag.build(small, folder, path)
    before = path.stat()
    os.utime(folder / "fees.md")
    for sources in (None, folder, folder / "fees.md"):
        changes = mo.cag.update(path, small, sources)
        assert (changes.computed_tokens, len(changes.unchanged)) == (0, 4)
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_adding_a_known_name_and_removing_an_unknown_one_is_refused(
    small: mo.Model, folder: Path, tmp_path: Path
):
    path = tmp_path / "a.kv"
    mo.cag.build(small, folder, path)
    good = path.read_bytes()
    (tmp_path / "rules.md").write_text("Others\n")
    with pytest.raises(mo.InvalidArgument, match=r"new names, got 'rules\.md'; replace them with update"):
        mo.cag.add(path, small, tmp_path / "rules.md")
    with pytest.raises(mo.InvalidArgument, match=r"one of fees\.md.*got 'no\.md'"):
        mo.cag.remove(path, small, ["fees.md", "no.md"])
    with pytest.raises(mo.InvalidArgument, match="at least one"):
        mo.cag.remove(path, small, list(PAGES))
    assert path.read_bytes() == good


def test_readers_keep_the_file_that_they_opened(small: mo.Model, folder: Path, tmp_path: Path):
    path = tmp_path / "a.kv"
    mo.cag.build(small, folder, path)
    reader = mo.cag.open(path, small)
    session = reader.session()
    before = [reader.ask("What?", max_new_tokens=6).ids, session.ask("What?", max_new_tokens=6).ids]
    mo.cag.remove(path, small, "fees.md")
    mo.cag.update(path, small, folder / "hours.md")
    assert reader.ask("What?", max_new_tokens=6).ids == before[0]
    session.reset()
    assert session.ask("What?", max_new_tokens=6).ids == before[1]
    assert len(reader.documents) == 4
    assert len(mo.cag.open(path, small).documents) == 3


def test_a_name_that_appears_meanwhile_is_not_replaced_by_add(
    small: mo.Model, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "a.kv"
    mo.cag.build(small, folder, path)
    ours, theirs = tmp_path / "ours" / "x.md", tmp_path / "theirs" / "x.md"
    for file in (ours, theirs):
        file.parent.mkdir()
        file.write_text(f"By {file.parent.name}\n")
    to_core = mo.cag._to_core

    def meanwhile(documents: Sequence[mo.cag.Document]) -> Any:
        """The last moment before the file is opened for the change."""
        monkeypatch.undo()
        mo.cag.add(path, small, theirs)
        return to_core(documents)

    monkeypatch.setattr(mo.cag, "_to_core", meanwhile)
    with pytest.raises(mo.InvalidArgument, match=r"new names, got 'x\.md'"):
        mo.cag.add(path, small, ours)
    assert mo.cag.open(path, small).documents[-1].text == "By theirs\n"
