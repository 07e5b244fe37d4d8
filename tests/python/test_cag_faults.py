# SPDX-License-Identifier: Apache-2.0
"""Knowledge caches whose bytes are wrong, by accident or by intent: found before an answer is given."""

from __future__ import annotations

import json
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import modicum as mo
import numpy as np
import pytest
from reseal import Cache, regions
from tiny import write_tiny_model

FORMS = [(layout, kv) for layout in ("joint", "blocks") for kv in ("wide", "int8", "int4")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> mo.Model:
    return mo.load(write_tiny_model(tmp_path_factory.mktemp("tiny")), threads=1)


def document(name: str, text: str) -> mo.cag.Document:
    return mo.cag.Document(name, name, text, (), converted=False, volatile=False)


DOCUMENTS = [
    document("a.md", "# Fees\n" + "- Day ticket: 4 euros\n" * 8),
    document("b.md", "# Hours\nMonday: 9:00 to 17:00\n"),
    document("c.md", "# Dogs\nNo dogs\n"),
]


@pytest.fixture(scope="module")
def caches(model: mo.Model, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    folder = tmp_path_factory.mktemp("caches")
    made = {}
    for layout, kv in FORMS:
        made[layout, kv] = folder / f"{layout}-{kv}.kv"
        mo.cag.build(model, DOCUMENTS, made[layout, kv], layout=layout, kv=kv, segment_tokens=64)
    return made


@pytest.mark.parametrize("form", FORMS)
def test_a_changed_byte_of_any_kind_is_found_before_an_answer(
    form: tuple[str, str], caches: dict[tuple[str, str], Path], model: mo.Model, tmp_path: Path
):
    path = tmp_path / "a.kv"
    good = caches[form].read_bytes()
    kinds = regions(caches[form])
    assert {"header length", "manifest", "padding", "k", "token_ids", "checksums", "prompt", "seal"} <= set(
        kinds
    )
    assert ("hidden" in kinds) == (form[0] == "joint")
    assert ("k_codes" in kinds and "v_scales" in kinds) == (form[1] != "wide")
    dice = random.Random(3)
    for kind, where in kinds.items():
        for at in {where[0], where[-1], *(dice.choice(where) for _ in range(4))}:
            bad = bytearray(good)
            bad[at] ^= 1 << dice.randrange(8)
            path.write_bytes(bad)
            with pytest.raises((mo.Corrupt, mo.FormatError, mo.Unsupported)):
                answer = mo.cag.open(path, model).ask("What?", max_new_tokens=1, most_segments=0)
                pytest.fail(f"byte {at} ({kind}) was not missed: {answer}")
            with pytest.raises((mo.Corrupt, mo.FormatError, mo.Unsupported)):
                mo.cag.verify(path)
                pytest.fail(f"verify did not miss byte {at} ({kind})")


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_is_cut_or_has_grown_is_refused(
    form: tuple[str, str], caches: dict[tuple[str, str], Path], model: mo.Model, tmp_path: Path
):
    path = tmp_path / "a.kv"
    good = caches[form].read_bytes()
    ends = {where[0] for where in regions(caches[form]).values()} | {len(good) - 1, 7, 9, 4095}
    for bad in [good[:end] for end in ends] + [good + b"\0", good + good]:
        path.write_bytes(bad)
        with pytest.raises((mo.Corrupt, mo.FormatError)):
            mo.cag.open(path, model)


def test_the_resealer_writes_what_the_library_writes(
    caches: dict[tuple[str, str], Path], model: mo.Model, tmp_path: Path
):
    for path in caches.values():
        Cache(path).write(tmp_path / "a.kv")
        mo.cag.verify(tmp_path / "a.kv", model, deep=True)
        expected = mo.cag.open(path, model).ask("Dogs?", max_new_tokens=4).ids
        assert mo.cag.open(tmp_path / "a.kv", model).ask("Dogs?", max_new_tokens=4).ids == expected


def put(*place: Any, value: Any) -> Callable[[Cache], None]:
    def edit(cache: Cache) -> None:
        at: Any = cache.manifest
        for key in place[:-1]:
            at = at[key]
        assert isinstance(at, list) or place[-1] in at or place[-1] == "pages", place
        at[place[-1]] = value

    return edit


def fill(name: str, dtype: str, value: int) -> Callable[[Cache], None]:
    return lambda cache: cache.put(name, np.full(cache.manifest["tokens"], value, dtype).tobytes())


def overlap(cache: Cache) -> None:
    segment = cache.manifest["segments"]
    segment.append({**segment[-1], "tokens": [segment[-1]["tokens"][0] + 1, segment[-1]["tokens"][1]]})


def backwards(cache: Cache) -> None:
    cache.put("token_bytes", cache.array("token_bytes", "<u8")[::-1].tobytes())


HOSTILE: dict[str, Callable[[Cache], None]] = {
    **{f"{n} tokens": put("tokens", value=n) for n in (2**31, 2**40, 2**63, 10**30, -1, 0, 1.5, "9", None)},
    "many heads": put("kv", "heads", value=65536),
    "wide heads": put("kv", "head_dim", value=65536),
    "many layers": put("kv", "layers", value=65536),
    "another encoding": put("kv", "encoding", value="int2"),
    "another layout": put("layout", value="tree"),
    "negative range": put("segments", -1, "tokens", value=[-5, 3]),
    "reversed range": put("segments", -1, "tokens", value=[5, 3]),
    "empty range": put("segments", -1, "tokens", value=[5, 5]),
    "overlapping segments": overlap,
    "no segments": put("segments", value=[]),
    "rotation beyond the position": put("segments", -1, "rotation", value=10**6),
    "rotation beyond everything": put("segments", -1, "rotation", value=2**64),
    "rotation before the first": put("segments", -1, "rotation", value=-1),
    "segment of no document": put("segments", -1, "document", value=3),
    "document outside the prompt": put("documents", 0, "bytes", value=[0, 10**9]),
    "document of 2^64 bytes": put("documents", 0, "bytes", value=[0, 2**64 - 1]),
    "reversed document": put("documents", 0, "bytes", value=[50, 3]),
    "overlapping documents": put("documents", 1, "bytes", value=[80, 90]),
    "document of too many tokens": put("documents", 0, "tokens", value=[0, 10**9]),
    "page outside its document": put("documents", 0, "pages", value=[0, 10**6]),
    "pages in disorder": put("documents", 0, "pages", value=[5, 1]),
    "resumed outside the prompt": put("resume", "byte", value=10**9),
    "resumed beyond the tokens": put("resume", "token", value=10**9),
    "threshold above 1": put("abstain_below", value=7),
    "token ids below 0": fill("token_ids", "<i4", -1),
    "token ids beyond the vocabulary": fill("token_ids", "<i4", 258),
    "tokens outside the prompt": fill("token_bytes", "<u8", 2**63),
    "tokens in disorder": backwards,
    "a manifest that never ends": lambda cache: setattr(cache, "manifest", "[" * 10**6),
    "a manifest that is a list": lambda cache: setattr(cache, "manifest", []),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_numbers_under_a_good_seal_are_refused(
    name: str, caches: dict[tuple[str, str], Path], model: mo.Model, tmp_path: Path
):
    for form in (("joint", "wide"), ("blocks", "wide"), ("blocks", "int8")):
        cache = Cache(caches[form])
        HOSTILE[name](cache)
        cache.write(tmp_path / "a.kv")
        start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises((mo.FormatError, mo.Corrupt, mo.Unsupported, mo.FingerprintMismatch)):
            mo.cag.open(tmp_path / "a.kv", model)
        assert time.monotonic() - start < 20  # it does not hang, however busy the machine
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB
        if not name.startswith("token ids"):  # which need the model's vocabulary
            with pytest.raises((mo.FormatError, mo.Corrupt, mo.Unsupported, mo.FingerprintMismatch)):
                mo.cag.inspect(tmp_path / "a.kv")


def test_strange_numbers_under_a_good_seal_give_an_answer_or_an_error_and_no_crash(
    caches: dict[tuple[str, str], Path], model: mo.Model, tmp_path: Path
):
    path = tmp_path / "a.kv"
    for form, cached in caches.items():
        for edit in (
            put("recompute", value=2**40),
            put("reserve", value=2**40),
            put("segment_tokens", value=0),
            put("select", value=True),
            put("resume", "byte", value=3),
            put("documents", 0, "name", value="a\nb\0"),
            put("documents", 0, "name", value="b.md"),
            put("documents", value=[]),
            put("segments", -1, "document", value=None),
            put("layout", value="joint" if form[0] == "blocks" else "blocks"),
            lambda c: c.put("k", np.full(len(c.tensors["k"][2]) // 4, np.nan, "<f4").tobytes()),
            lambda c: c.put("prompt", b"\xff" * len(c.tensors["prompt"][2])),
        ):
            for most in (0, 1):
                cache = Cache(cached)
                edit(cache)
                cache.write(path)
                try:
                    knowledge = mo.cag.open(path, model)
                    knowledge.ask("Dogs, euros?", max_new_tokens=2, most_segments=most)
                    mo.cag.verify(path, model, deep=True)
                    mo.cag.update(path, model, [document("z.md", "new")])
                except (mo.Error, UnicodeDecodeError):
                    pass


def test_a_million_segments_are_refused(caches: dict[tuple[str, str], Path], model: mo.Model, tmp_path: Path):
    cache = Cache(caches["blocks", "wide"])
    segment = json.dumps({"tokens": [0, 1], "rotation": 0, "wide": True, "document": 0})
    text = json.dumps({**cache.manifest, "segments": "HERE"})
    cache.manifest = text.replace('"HERE"', f"[{','.join([segment] * 10**6)}]")  # type: ignore[assignment]
    cache.write(tmp_path / "a.kv")
    code = (
        "import modicum as mo, resource, sys\n"
        "try: mo.cag.inspect(sys.argv[1])\n"
        "except mo.FormatError as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.kv")], capture_output=True, text=True, timeout=120
    )
    assert "follow each other" in done.stdout
    assert int(done.stdout.split()[-1]) < 2 << 20  # KiB: a tree of the JSON, of some 10 times its 80 MB


def test_more_than_the_context_holds_is_an_error_before_any_work(model: mo.Model, tmp_path: Path):
    many = [document(f"{i}.md", f"Words {i} and more of them\n") for i in range(300)]
    mo.cag.build(model, many, tmp_path / "a.kv", layout="blocks", overflow="select")
    cache = Cache(tmp_path / "a.kv")
    cache.manifest["select"] = False
    cache.write(tmp_path / "b.kv")
    knowledge = mo.cag.open(tmp_path / "b.kv", model)
    start = time.monotonic()
    with pytest.raises(mo.ContextOverflow, match=r"at most 1024 tokens, got \d{5}"):
        knowledge.ask("Words?", max_new_tokens=1)
    assert time.monotonic() - start < 10  # composing it first takes far longer for larger ones


def other_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}{{ messages[1].content }}")


def other_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["A"], vocab["B"] = vocab["B"], vocab["A"]
    path.write_text(json.dumps(tokenizer))


def merged_adapter(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-2] ^= 1  # one number of the last weight: as little as a merge can change
    (folder / "model.safetensors").write_bytes(data)


def beside_an_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}')


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (other_template, "chat template"),
        (other_tokenizer, "tokenizer"),
        (merged_adapter, "a merged adapter"),
    ],
)
def test_another_model_of_the_same_shape_is_refused_with_the_reason(
    change: Callable[[Path], None],
    reason: str,
    caches: dict[tuple[str, str], Path],
    model: mo.Model,
    tmp_path: Path,
):
    shutil.copytree(model.path, tmp_path / "m")
    change(tmp_path / "m")
    other = mo.load(tmp_path / "m", threads=1)
    for path in caches.values():
        for use in (
            lambda p: mo.cag.open(p, other),
            lambda p: mo.cag.verify(p, other),
            lambda p: mo.cag.verify(p, other, deep=True),
            lambda p: mo.cag.remove(p, other, "a.md"),
        ):
            with pytest.raises(mo.FingerprintMismatch, match=reason):
                use(path)


def test_other_weights_and_another_dtype_are_refused_with_the_reason(
    caches: dict[tuple[str, str], Path], model: mo.Model, tmp_path: Path
):
    other = mo.load(write_tiny_model(tmp_path / "m", seed=1), threads=1)
    with pytest.raises(mo.FingerprintMismatch, match="weights"):
        mo.cag.open(caches["joint", "wide"], other)
    with pytest.raises(mo.FingerprintMismatch, match=r"dtype: expected bf16, got f32"):
        mo.cag.open(caches["joint", "wide"], mo.load(model.path, dtype="bf16", threads=1))


def test_a_directory_with_an_adapter_beside_the_weights_is_refused(model: mo.Model, tmp_path: Path):
    shutil.copytree(model.path, tmp_path / "m")
    beside_an_adapter(tmp_path / "m")
    with pytest.raises(mo.Unsupported, match="adapter"):
        mo.load(tmp_path / "m")


def test_a_thousand_bad_documents_are_one_error_that_names_them(model: mo.Model, tmp_path: Path):
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "good.md").write_text("Good\n")
    path = tmp_path / "a.kv"
    mo.cag.build(model, folder, path)
    good = path.read_bytes()
    bad = {
        ".md": b"",
        ".txt": b"\xff\xfe",
        ".markdown": b" \n\t ",
        ".exe": b"MZ",
        ".docx": b"",
        ".html": b"",
        ".TXT": b"a\0b",
    }
    names = [f"{i:04}{suffix}" for i, suffix in enumerate(list(bad) * 143)][:999]
    for name in names:
        (folder / name).write_bytes(bad[name[4:]])
    (folder / "zip.docx").write_bytes(b"PK\x03\x04" + b"\xff" * 4000)
    for use in (mo.cag.update, mo.cag.add):
        with pytest.raises(mo.FormatError, match="1000 of 1001 documents") as error:
            use(path, model, folder)
        for name in [*names, "zip.docx"]:
            assert f"/{name}'" in str(error.value)
    with pytest.raises(mo.FormatError):
        mo.cag.build(model, folder, path)
    assert path.read_bytes() == good
    huge = document("huge.md", "word " * 100_000)
    with pytest.raises(mo.ContextOverflow, match=r"huge\.md 500000"):
        mo.cag.add(path, model, huge)
    assert path.read_bytes() == good


def test_a_thousand_small_documents_build_and_answer_by_selection(model: mo.Model, tmp_path: Path):
    folder = tmp_path / "documents"
    folder.mkdir()
    for i in range(1000):
        (folder / f"{i:04}.md").write_text(f"Locker {i} belongs to person{i}.\n")
    kb = mo.cag.build(model, folder, tmp_path / "a.kv", layout="blocks", overflow="select")
    assert len(kb.documents) == 1000
    answers = kb.ask_many(["Who is person77?", "And person978?"], max_new_tokens=4)
    assert ["0077.md" in answers[0].selected, "0978.md" in answers[1].selected] == [True, True]
    assert kb.ask("person500", most_segments=1, max_new_tokens=1).selected == ["0500.md"]
    mo.cag.verify(kb.path, model, deep=True)
