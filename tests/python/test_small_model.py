# SPDX-License-Identifier: Apache-2.0
"""The training of the small model: what it reads and never reads, and that a run leaves a working model."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

mo = pytest.importorskip("modicum")
torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")
pytest.importorskip("safetensors")

FOLDER = Path(__file__).parents[2] / "examples" / "small_model"


def module(name: str) -> ModuleType:
    """A script's module, without leaving its folder on the path, where others are named alike."""
    spec = importlib.util.spec_from_file_location(f"small_model_{name}", FOLDER / f"{name}.py")
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    for name in ("text", "train", "network", "tokens"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield module("train")
    for name in ("text", "train", "network", "tokens"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few invented documents in each of the places that training reads."""
    folder, rng = tmp_path_factory.mktemp("corpora"), random.Random(1)
    words = ["the", "a", "cat", "dog", "house", "king", "runs", "sees", "gold", "seven", "in", "and", "said"]

    def sentence() -> str:
        return " ".join(rng.choices(words, k=rng.randint(5, 12))).capitalize() + "."

    def prose(sentences: int) -> str:
        return " ".join(sentence() for _ in range(sentences))

    files = {
        "tinystories/stories.jsonl": "".join(json.dumps({"text": prose(9)}) + "\n" for _ in range(60)),
        "wikitext2/valid.txt": "".join(f" \n = Title {i} = \n \n {prose(20)} \n" for i in range(20)),
        "grimm/GrimmsFairyTales.txt": "\n\n\n".join(f"THE TALE\n\n\n{prose(20)}" for _ in range(20)),
        "tinyshakespeare/input.txt": "\n\n".join(f"KING:\n{sentence()}" for _ in range(900)),
        "gsm8k/train.jsonl": "".join(
            json.dumps({"question": prose(2), "answer": "#### 7"}) + "\n" for _ in range(60)
        ),
    }
    for name, text in files.items():
        (folder / name).parent.mkdir()
        (folder / name).write_text(text)
    return folder


def test_held_out_documents_are_the_last_ones_of_each_source(corpora: Path) -> None:
    text = module("text")
    learn, held_out = text.read(corpora)
    assert set(learn) == set(held_out) == set(text.SOURCES)
    for name in learn:
        assert learn[name] + held_out[name] == text.documents(name, corpora / text.SOURCES[name])
        held, every = (sum(map(len, parts)) for parts in (held_out[name], learn[name] + held_out[name]))
        assert 0.06 * every <= held <= 0.25 * every


def test_the_real_text_is_split_without_a_common_document(data: Path) -> None:
    text = module("text")
    learn, held_out = text.read(data / "corpora")
    for name in learn:
        assert not set(learn[name]) & set(held_out[name])
    sizes = {name: (len(learn[name]), len(held_out[name])) for name in learn}
    assert sizes["wikitext2"] == (56, 4) and sizes["grimm"] == (61, 3) and sizes["gsm8k"] == (7020, 453)


def test_rows_hold_every_token_once_behind_bos(train: Any) -> None:
    texts = [f"Story {i}: " + "once upon a time " * i for i in range(40)]
    tokenizer = train.train_tokenizer(texts, 300)
    rows = train.rows(tokenizer, texts, 64, None)
    assert rows.shape[1] == 64 and set(rows[:, 0].tolist()) == {train.BOS}
    stream = [t for text in texts for t in [*tokenizer.encode(text).ids, train.END]]
    inner = [t for t in rows.flatten().tolist() if t != train.BOS]
    assert inner == [t for t in stream if t != train.BOS][: len(inner)]
    assert len(stream) - rows.numel() < 64
    shuffled = train.rows(tokenizer, texts, 64, random.Random(3))
    assert not torch.equal(rows[0], shuffled[0])


def test_a_run_leaves_a_model_that_loads_and_goes_on(corpora: Path, tmp_path: Path) -> None:
    def run(steps: int, *options: str) -> str:
        command = [sys.executable, str(FOLDER / "train.py"), "--data", str(corpora), "--out", str(tmp_path)]
        command += ["--steps", str(steps), "--rows", "2", "--length", "32", "--no-compile", *options]
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    run(1)
    assert json.loads((tmp_path / "training.json").read_text())["step"] == 1
    assert "step 2, " in run(2, "--resume")
    model = mo.load(tmp_path)
    assert (model.config.num_attention_heads, model.config.num_key_value_heads) == (12, 12)
    assert model.tokenizer.encode("The king")[0] == model.config.bos_token_id == 1
    assert model.chat_template is None
    found = mo.retrofit.Calibration.from_text(
        model, tmp_path / "held_out", tokens=128, length=32, held_out=0.25
    )
    assert found.bos == [1]
