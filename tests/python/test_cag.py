# SPDX-License-Identifier: Apache-2.0
"""Knowledge caches: exact, self-checking, whole or absent."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import modicum as mo
import numpy as np
import pytest
from safetensors import safe_open
from tiny import write_tiny_model

FEES = "# Fees\n\n- Day ticket: 4 euros\n- Year card: 30 euros\n"
HOURS = "# Hours\r\n\r\nMonday: 9:00 to 17:00\r\n"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> mo.Model:
    return mo.load(write_tiny_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "fees.md").write_bytes(FEES.encode())
    (folder / "hours.md").write_bytes(HOURS.encode())
    return folder


def test_logits_are_bit_identical_with_and_without_the_cache(
    model: mo.Model, documents: Path, tmp_path: Path
):
    mo.cag.build(model, documents, tmp_path / "a.kv")
    kb = mo.cag.open(tmp_path / "a.kv", model)
    leaf = kb.branch().extend(kb.question_ids("What does the year card cost?"))
    one_call = model.tree().extend(leaf.tokens)
    assert np.array_equal(leaf.logits().view(np.uint32), one_call.logits().view(np.uint32))
    halves = model.tree().extend(leaf.tokens[:70]).extend(leaf.tokens[70:])
    assert np.array_equal(leaf.logits().view(np.uint32), halves.logits().view(np.uint32))


def test_the_demo_model_answers_alike_with_and_without_the_cache(demo: Path, tmp_path: Path):
    model = mo.load(demo / "model")
    kb = mo.cag.build(model, demo / "handbook", tmp_path / "a.kv")
    for entry in json.loads((demo / "questions.json").read_text("utf-8")):
        answer = kb.ask(entry["question"])
        ids = kb.branch().tokens + kb.question_ids(entry["question"])
        assert model.generate(ids, max_new_tokens=64).ids == answer.ids


def test_the_prompt_is_the_chat_template_around_documents_and_question(
    model: mo.Model, documents: Path, tmp_path: Path
):
    kb = mo.cag.build(model, documents, tmp_path / "a.kv")
    content = f"{mo.cag.INSTRUCTION}\n\n[fees.md]\n{FEES}\n\n[hours.md]\n{HOURS}\n\n"
    assert model.chat_template is not None
    whole = model.chat_template.render(
        [{"role": "system", "content": content}, {"role": "user", "content": "When?"}]
    )
    ids = kb.branch().tokens + kb.question_ids(" When? \n")
    assert ids == model.tokenizer.encode(whole, add_special_tokens=False)


@pytest.mark.parametrize(
    "template",
    [
        None,
        "{{ raise_exception('no system') if messages[0].role == 'system' }}"
        "{% for m in messages %}<|user|>{{ m.content | trim }}<|end|>{% endfor %}",
    ],
)
def test_models_without_a_template_or_a_system_role_are_served(template, documents: Path, tmp_path: Path):
    model = mo.load(write_tiny_model(tmp_path / "m", template=template))
    kb = mo.cag.build(model, documents, tmp_path / "a.kv")
    assert "Year card" in kb.prompt
    assert kb.ask("When?", max_new_tokens=4).cost.new_tokens <= 4


def test_a_citation_is_the_line_at_those_bytes_of_the_file(demo: Path, tmp_path: Path):
    model = mo.load(demo / "model")
    kb = mo.cag.build(model, demo / "handbook", tmp_path / "a.kv")
    cited = 0
    for entry in json.loads((demo / "questions.json").read_text("utf-8")):
        for citation in kb.ask(entry["question"]).citations:
            begin, end = citation.bytes
            assert Path(citation.source).read_bytes()[begin:end].decode() == citation.quote
            cited += 1
    assert cited > 0


def test_any_safetensors_tool_lists_the_file(model: mo.Model, documents: Path, tmp_path: Path):
    kb = mo.cag.build(model, documents, tmp_path / "a.kv")
    with safe_open(tmp_path / "a.kv", "np") as file:
        assert file.metadata()["format"] == "modicum.knowledge"
        assert file.get_tensor("k").shape == (2, len(kb), 2, 8)
        assert file.get_tensor("token_ids").tolist() == kb.branch().tokens
    assert (tmp_path / "a.kv").stat().st_mode & 0o777 == 0o600
    header = int.from_bytes((tmp_path / "a.kv").read_bytes()[:8], "little")
    assert (8 + header) % 4096 == 0


def test_flipped_truncated_and_foreign_files_are_refused(model: mo.Model, documents: Path, tmp_path: Path):
    path = tmp_path / "a.kv"
    mo.cag.build(model, documents, path)
    good = path.read_bytes()
    dice = random.Random(1)
    for _ in range(100):
        bad = bytearray(good)
        bad[dice.randrange(len(bad))] ^= 1 << dice.randrange(8)
        path.write_bytes(bad)
        with pytest.raises(mo.Error):
            mo.cag.open(path, model).ask("When?", max_new_tokens=1)
    for size in [0, 1, 8, 4096, len(good) // 2, len(good) - 1]:
        path.write_bytes(good[:size])
        with pytest.raises(mo.FormatError):
            mo.cag.open(path, model)
    for foreign in [model.path / "model.safetensors", model.path / "config.json", documents]:
        with pytest.raises(mo.Error):
            mo.cag.open(foreign, model)


def test_a_same_shaped_model_is_refused(model: mo.Model, documents: Path, tmp_path: Path):
    mo.cag.build(model, documents, tmp_path / "a.kv")
    other = mo.load(write_tiny_model(tmp_path / "other", seed=1))
    with pytest.raises(mo.FingerprintMismatch, match="weights"):
        mo.cag.open(tmp_path / "a.kv", other)
    assert issubclass(mo.FingerprintMismatch, ValueError)


def test_a_copied_model_directory_is_the_same_model(model: mo.Model, documents: Path, tmp_path: Path):
    mo.cag.build(model, documents, tmp_path / "a.kv")
    copy = mo.load(write_tiny_model(tmp_path / "copy"))
    assert len(mo.cag.open(tmp_path / "a.kv", copy)) > 0


def test_bad_sources_are_refused(model: mo.Model, tmp_path: Path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(mo.InvalidArgument, match="at least one"):
        mo.cag.build(model, empty, tmp_path / "a.kv")
    with pytest.raises(mo.IoError):
        mo.cag.build(model, tmp_path / "missing", tmp_path / "a.kv")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(mo.FormatError, match="offset 3"):
        mo.cag.build(model, tmp_path / "latin.txt", tmp_path / "a.kv")
    assert not (tmp_path / "a.kv").exists()


def test_what_does_not_fit_is_an_error_with_both_counts(model: mo.Model, documents: Path, tmp_path: Path):
    kb = mo.cag.build(model, documents, tmp_path / "a.kv")
    with pytest.raises(mo.ContextOverflow, match=r"at most 1024 tokens, got \d{4}"):
        kb.ask("why " * 500)
    (documents / "long.md").write_text("long " * 300)
    with pytest.raises(mo.ContextOverflow, match=r"at most 1024 .*, got \d{4} .*long.md 1500"):
        mo.cag.build(model, documents, tmp_path / "a.kv")


def test_an_unwritable_path_is_an_error(model: mo.Model, documents: Path, tmp_path: Path):
    with pytest.raises(mo.IoError):
        mo.cag.build(model, documents, tmp_path / "missing" / "a.kv")
    with pytest.raises(mo.IoError):
        mo.cag.build(model, documents, "/proc/a.kv")
    with pytest.raises(OSError):
        mo.cag.build(model, documents, documents)


BUILD = """
import resource, sys, time
import modicum as mo
limit, model, documents, out = sys.argv[1:]
if int(limit): resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
model = mo.load(model, threads=1)
print("ready", flush=True)
while True:
    try:
        mo.cag.build(model, documents, out)
    except mo.IoError as error:
        print(error, flush=True)
        sys.exit(1)
    if len(sys.argv) > 5 or int(limit): break
"""


def start_build(model: mo.Model, documents: Path, out: Path, limit: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILD, str(limit), str(model.path), str(documents), str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)


def test_a_full_disk_leaves_the_old_file(model: mo.Model, documents: Path, tmp_path: Path):
    path = tmp_path / "a.kv"
    mo.cag.build(model, documents, path)
    good = path.read_bytes()
    process = start_build(model, documents, path, limit=20_000)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "a.kv" in output
    assert path.read_bytes() == good
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.kv", "documents"]


def test_kill_9_in_mid_save_leaves_a_whole_file_and_the_next_build_cleans_up(
    model: mo.Model, documents: Path, tmp_path: Path
):
    path = tmp_path / "a.kv"
    mo.cag.build(model, documents, path)
    dice = random.Random(2)
    for _ in range(12):
        process = start_build(model, documents, path)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(dice.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert len(mo.cag.open(path, model)) > 0
    mo.cag.build(model, documents, path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.kv", "documents"]


def test_two_builds_at_once_to_one_path(model: mo.Model, documents: Path, tmp_path: Path):
    path = tmp_path / "a.kv"
    processes = [start_build(model, documents, path) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        if path.exists():
            assert len(mo.cag.open(path, model)) > 0
    for process in processes:
        assert process.poll() is None, "a build failed because of the other"
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_progress_can_cancel_and_leaves_nothing(model: mo.Model, documents: Path, tmp_path: Path):
    with pytest.raises(mo.Cancelled):
        mo.cag.build(model, documents, tmp_path / "a.kv", progress=lambda *_: False)
    assert not (tmp_path / "a.kv").exists()
    seen: list[tuple[int, int]] = []
    mo.cag.build(
        model,
        documents,
        tmp_path / "a.kv",
        progress=lambda stage, done, total: seen.append((done, total)) if stage == "extend" else None,
    )
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


def test_an_exception_in_a_callback_comes_back_as_it_is(model: mo.Model, documents: Path, tmp_path: Path):
    def stop(*_: object) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        mo.cag.build(model, documents, tmp_path / "a.kv", progress=stop)
    kb = mo.cag.build(model, documents, tmp_path / "a.kv")
    with pytest.raises(KeyError, match="mine"):
        kb.ask("When?", stream=stop)


def test_streaming_gives_the_text_of_the_answer(model: mo.Model, documents: Path, tmp_path: Path):
    kb = mo.cag.build(model, documents, tmp_path / "a.kv")
    pieces: list[str] = []
    answer = kb.ask("When?", stream=pieces.append, max_new_tokens=40)
    assert "".join(pieces) == answer.text
    assert str(answer) == answer.text
