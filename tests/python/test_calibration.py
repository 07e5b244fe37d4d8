# SPDX-License-Identifier: Apache-2.0
"""Calibration sequences: what they hold, what is held out, how they begin, what is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

mo = pytest.importorskip("modicum")
np = pytest.importorskip("numpy")

Calibration = mo.retrofit.Calibration


@pytest.fixture(scope="module")
def model(demo: Path) -> mo.Model:
    return mo.load(demo / "model")


@pytest.fixture(scope="module")
def stories(data: Path) -> mo.Model:
    return mo.load(data / "models" / "stories260K")


def count_up(tokens: int, first: int = 0) -> Any:
    """Ids that all differ within the demo's vocabulary, so that each tells where it stood."""
    assert first + tokens <= 2048
    return np.arange(first, first + tokens, dtype=np.int64)


def windows(rows: Any) -> set[tuple[int, ...]]:
    return {tuple(row) for row in rows.tolist()}


# What the sequences hold


def test_sequences_are_windows_of_the_text_behind_bos(demo: Path, model: mo.Model) -> None:
    files = sorted((demo / "handbook").glob("*.md"))
    found = Calibration.from_text(model, demo / "handbook", tokens=320, length=32)
    ids = model.tokenizer.encode("\n\n".join(file.read_text() for file in files), add_special_tokens=False)
    assert found.sequences.shape == (10, 32) and found.held_out.shape == (1, 32)
    assert found.sequences.dtype == np.int32 and found.tokens == 320
    for row in [*found.sequences.tolist(), *found.held_out.tolist()]:
        assert row[0] == model.config.bos_token_id
        assert any(ids[at : at + 31] == row[1:] for at in range(0, len(ids), 31))


def test_held_out_windows_share_no_token_with_the_others(model: mo.Model) -> None:
    for seed in range(20):
        found = Calibration.from_text(
            model, count_up(2000), tokens=1000, length=10, held_out=0.5, bos="never", seed=seed
        )
        learnt, held = set(found.sequences.flatten().tolist()), set(found.held_out.flatten().tolist())
        assert len(learnt) == 1000 and len(held) == 500
        assert not learnt & held


def test_held_out_windows_stand_together_in_stretches(model: mo.Model) -> None:
    """Single windows among those learnt from would be foreknown by their neighbours."""
    found = Calibration.from_text(model, count_up(2048), tokens=1024, length=4, bos="never", held_out=0.5)
    held = {row[0] // 4 for row in found.held_out.tolist()}
    stretches = {window // 16 for window in held}
    assert len(held) == 128 and len(stretches) == 8


def test_every_token_can_be_used(model: mo.Model) -> None:
    for seed in range(20):
        found = Calibration.from_text(
            model, count_up(99), tokens=88, length=11, bos="never", seed=seed, held_out=0.125
        )
        assert found.sequences.shape == (8, 11) and found.held_out.shape == (1, 11)
        assert sorted([*found.sequences.flatten(), *found.held_out.flatten()]) == list(range(99))


def test_the_seed_chooses_the_windows(model: mo.Model) -> None:
    def take(seed: int) -> Any:
        return Calibration.from_text(model, count_up(2048), tokens=256, length=16, seed=seed)

    assert np.array_equal(take(1).sequences, take(1).sequences)
    assert np.array_equal(take(1).held_out, take(1).held_out)
    assert take(1).to_dict() == take(1).to_dict()
    assert windows(take(1).sequences) != windows(take(2).sequences)
    assert take(1).to_dict()["sha256"] != take(2).to_dict()["sha256"]


def test_length_is_512_or_the_context(model: mo.Model, stories: mo.Model) -> None:
    assert Calibration.from_text(model, count_up(2040), tokens=1024).length == 512
    assert model.config.max_position_embeddings == 2048
    ids = np.tile(np.arange(3, 500), 10)
    assert Calibration.from_text(stories, ids, tokens=1024).length == 512
    with pytest.raises(mo.ContextOverflow, match="at most the context, 512, got 513"):
        Calibration.from_text(stories, ids, tokens=1024, length=513)


def test_sequences_cannot_be_changed_by_accident(model: mo.Model) -> None:
    found = Calibration.from_text(model, count_up(2000), tokens=100, length=10)
    with pytest.raises(ValueError):
        found.sequences[0, 0] = 1


# BOS


def test_sequences_begin_as_prompts_do(model: mo.Model, stories: mo.Model) -> None:
    """stories260K's tokenizer adds BOS; the demo's does not, but its chat template writes it."""
    ids = np.tile(np.arange(3, 500), 4)
    for one in (model, stories):
        found = Calibration.from_text(one, ids, tokens=64, length=32)
        assert found.bos == [one.config.bos_token_id] == [1]
        assert set(found.sequences[:, 0].tolist()) == {1}
        assert 1 not in found.sequences[:, 1:]
        free = Calibration.from_text(one, ids, tokens=64, length=32, bos="never")
        assert free.bos == [] and 1 not in free.sequences
    assert Calibration.from_text(stories.tokenizer, ids, tokens=64, length=32).bos == [1]
    assert Calibration.from_text(model.tokenizer, ids, tokens=64, length=32).bos == []
    with pytest.raises(mo.InvalidArgument, match="pass the model"):
        Calibration.from_text(model.tokenizer, ids, tokens=64, length=32, bos="always")


def test_bos_stands_only_at_the_beginning(model: mo.Model) -> None:
    """Rows of ids that begin with BOS already are read without it."""
    rows = np.stack([np.r_[1, count_up(9, 10 + 9 * i)] for i in range(20)])
    found = Calibration.from_text(model, rows, tokens=60, length=10)
    assert found.sources[0].tokens == 180
    assert (found.sequences == 1).sum() == len(found.sequences)


def test_a_model_without_bos_gets_none(demo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).symlink_to(demo / "model" / name)
    config = json.loads((demo / "model" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"bos_token_id": None}))
    model = mo.load(folder)
    assert Calibration.from_text(model, count_up(2000), tokens=100, length=10).bos == []
    with pytest.raises(mo.InvalidArgument, match="BOS"):
        Calibration.from_text(model, count_up(2000), tokens=100, length=10, bos="always")
    with pytest.raises(mo.InvalidArgument, match="pass prompts"):
        Calibration.generate(model, 10)


# Sources


def test_a_mix_takes_from_each_source_by_weight(model: mo.Model, tmp_path: Path) -> None:
    for name, word in (("a.txt", "library "), ("b.txt", "hospital ")):
        (tmp_path / name).write_text(word * 3000)
    a, b = tmp_path / "a.txt", tmp_path / "b.txt"
    found = Calibration.from_text(
        model, [a, b], tokens=800, length=20, mix={a: 3, b: 1}, held_out=0.2, seed=3
    )
    assert [(s.name, s.sequences, s.held_out) for s in found.sources] == [(str(a), 30, 6), (str(b), 10, 2)]
    same = Calibration.from_text(model, [a, b], tokens=800, length=20, mix=[3, 1], held_out=0.2, seed=3)
    assert np.array_equal(same.sequences, found.sequences)
    word = set(model.tokenizer.encode("library library", add_special_tokens=False))
    own = [len(word & set(row)) > 1 for row in found.sequences.tolist()]
    assert sum(own) == 30 and 4 <= sum(own[:10]) < 10  # every beginning is a mix


def test_without_a_mix_sources_count_by_their_tokens(model: mo.Model) -> None:
    found = Calibration.from_text(
        model, [count_up(1500), count_up(500, 1500)], tokens=800, length=10, bos="never", held_out=0.1
    )
    assert [(s.sequences, s.held_out) for s in found.sources] == [(60, 6), (20, 2)]


def test_jsonl_is_read_by_field(model: mo.Model, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"q": f"Why {i}?", "a": f"So {i}."}) + "\n\n" for i in range(200)))
    found = Calibration.from_text(model, path, tokens=200, length=20, field=("q", "a"))
    text = "\n\n".join(f"Why {i}?\nSo {i}." for i in range(200))
    assert found.sources[0].sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert found.sources[0].tokens == len(model.tokenizer.encode(text, add_special_tokens=False))
    with pytest.raises(mo.FormatError, match=r"line 1.*'text', got 'q', 'a'"):
        Calibration.from_text(model, path, tokens=200, length=20)
    path.write_text('{"text": "fine"}\n{"text": ')
    with pytest.raises(mo.FormatError, match="line 2: expected JSON"):
        Calibration.from_text(model, path, tokens=200, length=20)


def test_a_folder_is_read_whole_and_in_order(model: mo.Model, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.jsonl").write_text(json.dumps({"text": "second " * 300}))
    (tmp_path / "a.txt").write_text("first " * 300)
    (tmp_path / ".hidden.txt").write_text("hidden")
    found = Calibration.from_text(model, tmp_path, tokens=100, length=10)
    text = "first " * 300 + "\n\n" + "second " * 300
    assert found.sources[0].sha256 == hashlib.sha256(text.encode()).hexdigest()
    (tmp_path / "table.csv").write_text("1,2")
    with pytest.raises(mo.Unsupported, match=r"\.csv"):
        Calibration.from_text(model, tmp_path, tokens=100, length=10)


def test_long_text_is_encoded_as_if_in_one(data: Path, stories: mo.Model) -> None:
    path = data / "corpora" / "wikitext2" / "test.txt"
    found = Calibration.from_text(stories, path, tokens=2048, length=256)
    ids = stories.tokenizer.encode(path.read_text(), add_special_tokens=False)
    # A piece may begin with the space that this tokenizer puts before a text.
    assert 0 <= found.sources[0].tokens - len(ids) <= 2


# A model's own text


def test_own_text_begins_with_bos_and_ends_at_eos(stories: mo.Model) -> None:
    own = Calibration.generate(stories, 3000, length=200, seed=5)
    assert own.tokens == sum(map(len, own.documents)) >= 3000
    assert own.model == stories.fingerprint
    for ids in own.documents:
        assert ids[0] == 1 and 1 not in ids[1:] and 2 not in ids[:-1]
        assert len(ids) == 200 or ids[-1] == 2
    text = stories.tokenizer.decode(own.documents[0].tolist())
    assert "Once upon a time" in "".join(stories.tokenizer.decode(d.tolist()) for d in own.documents), text
    again = Calibration.generate(stories, 3000, length=200, seed=5)
    assert all(np.array_equal(a, b) for a, b in zip(own.documents, again.documents, strict=True))
    other = Calibration.generate(stories, 3000, length=200, seed=6)
    assert own.documents[0].tolist() != other.documents[0].tolist()


def test_own_text_follows_the_models_distribution(stories: mo.Model) -> None:
    """First tokens after BOS: their frequencies are the model's probabilities within four deviations."""
    own = Calibration.generate(stories, 2 * 640, length=2, seed=1)
    first = np.bincount([int(d[1]) for d in own.documents], minlength=512) / len(own.documents)
    scores = stories.logits([1])[-1].astype(np.float64)
    right = np.exp(scores - scores.max())
    right /= right.sum()
    assert np.all(np.abs(first - right) <= 4 * np.sqrt(right * (1 - right) / len(own.documents)) + 0.005)


def test_own_text_grows_from_prompts_in_turn(stories: mo.Model) -> None:
    prompts = ["The cat", "A dog ran"]
    own = Calibration.generate(stories, 1000, prompts=prompts, length=40)
    starts = [stories.tokenizer.encode(p) for p in prompts]
    assert len(own.documents) > 16
    for i, ids in enumerate(own.documents):
        assert ids[: len(starts[i % 2])].tolist() == starts[i % 2]


def test_own_text_is_a_source_like_others(data: Path, stories: mo.Model) -> None:
    own = Calibration.generate(stories, 2500, seed=2)
    text = data / "corpora" / "tinyshakespeare" / "input.txt"
    found = Calibration.from_text(stories, [own, text], tokens=4096, length=128, mix=[1, 1])
    assert [(s.kind, s.sequences) for s in found.sources] == [("own text", 16), ("text", 16)]
    assert (found.sequences == 1).sum() == 32
    origin = found.to_dict()["sources"][0]["origin"]
    assert origin["seed"] == 2 and origin["model"] == stories.fingerprint
    assert "origin" not in found.to_dict()["sources"][1]


def test_own_text_can_be_cancelled(stories: mo.Model) -> None:
    with pytest.raises(mo.Cancelled, match="of 5000 tokens"):
        Calibration.generate(stories, 5000, length=50, progress=lambda *_: False)


# The report


def test_the_report_is_json(demo: Path, model: mo.Model) -> None:
    found = Calibration.from_text(model, demo / "handbook", tokens=320, length=32, seed=9)
    told = json.loads(json.dumps(found.to_dict()))
    assert told["schema"] == "modicum.retrofit.calibration/1"
    assert (told["sequences"], told["held_out"], told["length"], told["tokens"]) == (10, 1, 32, 320)
    assert told["seed"] == 9 and told["bos"] == [1]
    (source,) = told["sources"]
    assert source["name"] == str(demo / "handbook") and len(source["sha256"]) == 64
    assert source["weight"] == 1


# Refusals


def test_too_short_a_text_is_refused_with_both_numbers(model: mo.Model, tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("A few words.")
    has = len(model.tokenizer.encode("A few words.", add_special_tokens=False))
    with pytest.raises(mo.InvalidArgument, match=rf"at least {(8 + 1) * 63} tokens .* got {has};"):
        Calibration.from_text(model, path, tokens=512, length=64)
    with pytest.raises(mo.InvalidArgument, match=r"at least 100 tokens .* got 99;"):
        Calibration.from_text(model, count_up(99), tokens=90, length=10, bos="never")
    with pytest.raises(mo.InvalidArgument, match=r"ids: expected at least 500 tokens .* got 300;"):
        Calibration.from_text(
            model, [count_up(2000), count_up(300)], tokens=900, length=10, mix=[1, 1], bos="never"
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 0}, "tokens: expected at least 1"),
        ({"length": 2}, "length: expected at least 3"),
        ({"held_out": 0}, "held_out: expected more than 0"),
        ({"bos": "maybe"}, "bos: expected 'model'"),
        ({"mix": [1, 2]}, "mix: expected 1 positive"),
        ({"mix": [-1]}, "mix: expected 1 positive"),
        ({"mix": {"a.txt": 1}}, "'a.txt', which is no source"),
        ({"sources": []}, "sources: expected at least one"),
        ({"sources": np.zeros(5)}, "expected integers"),
        ({"sources": np.array([5, -1])}, "expected token ids, got -1"),
        ({"sources": np.arange(100, 4000)}, "expected ids below 2048, got 3999"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    options: dict[str, Any], message: str, model: mo.Model
) -> None:
    arguments: dict[str, Any] = {"sources": count_up(2000), "tokens": 100, "length": 10, **options}
    with pytest.raises(mo.InvalidArgument, match=message):
        Calibration.from_text(model, arguments.pop("sources"), **arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 0}, "tokens: expected at least 1"),
        ({"temperature": 0}, "temperature: expected more than 0"),
        ({"prompts": []}, "prompts: expected a list"),
        ({"prompts": "A dog"}, "prompts: expected a list"),
        ({"prompts": [[]]}, "at least one token each"),
        ({"length": 1}, "length: expected more than the 1 tokens"),
    ],
)
def test_own_text_refuses_what_makes_no_sense(
    options: dict[str, Any], message: str, stories: mo.Model
) -> None:
    with pytest.raises(mo.InvalidArgument, match=message):
        Calibration.generate(stories, **{"tokens": 10, **options})
