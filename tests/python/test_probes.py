# SPDX-License-Identifier: Apache-2.0
"""Probes of two models: the numbers are what the logits say, damage shows, inability is admitted."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

mo = pytest.importorskip("modicum")
np = pytest.importorskip("numpy")
safetensors = pytest.importorskip("safetensors.numpy")
tokenizers = pytest.importorskip("tokenizers")

from modicum.retrofit import probes  # noqa: E402


@pytest.fixture(scope="module")
def model(demo: Path) -> mo.Model:
    return mo.load(demo / "model")


def variant(source: Path, folder: Path, **config: Any) -> Path:
    """The model in `source` with other entries in its config."""
    folder.mkdir()
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).symlink_to(source / name)
    told = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(told | config))
    return folder


@pytest.fixture(scope="module")
def blind(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> mo.Model:
    """The demo whose attention adds nothing: it cannot look back."""
    pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    folder = variant(demo / "model", tmp_path_factory.mktemp("blind") / "model")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for name, weight in weights.items():
        if "o_proj" in name:
            weight.zero_()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return mo.load(folder)


def log_softmax(logits: Any) -> Any:
    wide = logits.astype(np.float64)
    return (
        wide
        - np.log(np.exp(wide - wide.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - wide.max(-1, keepdims=True)
    )


# The numbers


def test_recall_scores_the_second_occurrence(model: mo.Model, blind: mo.Model) -> None:
    """The strings are caught as the model reads them; everything else is computed again."""
    read: list[list[int]] = []

    class Spy:
        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

        def logits(self, ids: list[int]) -> Any:
            read.append(ids)
            return model.logits(ids)

    found = probes.recall(Spy(), blind, strings=4, length=10)  # type: ignore[arg-type]
    assert found.items == 4 * 9 and len(read) == 4
    nll, first, right = [], [], []
    for ids in read:
        assert len(ids) == 20 and ids[0] == 1  # BOS, ten tokens, and again all but the last
        assert ids[11:] == ids[1:10] and len(set(ids[1:11])) > 5
        logits, again = model.logits(ids), ids[2:11]
        rows = log_softmax(logits)
        nll += [-rows[11 + i, token] for i, token in enumerate(again)]
        first += [-rows[1 + i, token] for i, token in enumerate(again)]
        right += [int(logits[11 + i].argmax()) == token for i, token in enumerate(again)]
    assert math.isclose(found.before.nll, float(np.mean(nll)), rel_tol=1e-9)
    assert math.isclose(found.chance.nll, float(np.mean(first)), rel_tol=1e-9)
    assert found.before.accuracy == np.mean(right)


def test_recall_draws_no_special_tokens(model: mo.Model) -> None:
    ordinary = set(probes._ordinary_tokens(model).tolist())
    special = {i for i in range(2048) if model.tokenizer.is_special(i)}
    assert len(special) == 6 and ordinary == set(range(2048)) - special


def test_choices_are_scored_by_their_whole_text(model: mo.Model) -> None:
    """The log-probability of prompt and answer, read in one go, normalised over the answers."""
    found = probes.arithmetic(model, model, problems=1, shots=1, choices=3, seed=4)
    rng = np.random.default_rng(4)
    (a, b), (c, d) = rng.integers(1, 10, size=(2, 2)).tolist()
    wrong = [c + d + off for off in (1, -1, 2, -2, 10, -10, 3) if c + d + off >= 0]
    answers = [c + d, *rng.choice(wrong, size=2, replace=False).tolist()]
    text = f"{a} + {b} = {a + b}\n{c} + {d} ="
    totals = []
    for answer in answers:
        ids = [1, *model.tokenizer.encode(f"{text} {answer}\n", add_special_tokens=False)]
        rows = log_softmax(model.logits(ids))
        totals.append(sum(rows[i, token] for i, token in enumerate(ids[1:])))
    expected = np.logaddexp.reduce(totals) - totals[0]
    assert math.isclose(found.before.nll, expected, abs_tol=0.02)  # bf16 keys and values
    assert found.before.accuracy == float(totals[0] > max(totals[1:]))
    assert found.chance == probes.Score(1 / 3, math.log(3))


def test_two_equal_models_score_alike(model: mo.Model, demo: Path) -> None:
    again = mo.load(demo / "model")
    for probe in probes.run(model, again, seed=3).results:
        assert probe.before == probe.after
        assert probe.lost == probe.gained == 0


def test_the_seed_chooses_the_questions(model: mo.Model, blind: mo.Model) -> None:
    def told(seed: int) -> dict[str, Any]:
        return probes.run(model, blind, seed=seed).to_dict()

    assert told(1) == told(1)
    for one, other in zip(told(1)["results"], told(2)["results"], strict=True):
        assert one["before"] != other["before"]


# What they show


def test_a_model_that_no_longer_looks_back_is_found_out(model: mo.Model, blind: mo.Model) -> None:
    found = {probe.name: probe for probe in probes.run(model, blind).results}
    key = found["passkey"]
    assert key.able and key.before.accuracy >= 0.9 and key.after.accuracy <= 0.4
    assert key.lost >= 9 and key.after.nll > 2
    assert key.lost - key.gained == round((key.before.accuracy - key.after.accuracy) * key.items)
    copying = found["recall"]
    assert copying.able and copying.before.accuracy > 0.03 and copying.after.accuracy < 0.01
    assert copying.before.nll < copying.chance.nll - 1


def test_what_a_model_never_could_is_not_called_unharmed(blind: mo.Model) -> None:
    for probe in probes.run(blind, blind).results:
        assert not probe.able
        assert "this shows nothing" in str(probe)
        assert probe.to_dict()["able"] is False


def test_one_lucky_hit_is_no_ability() -> None:
    score = probes.Score
    lucky = probes.Probe("recall", 496, score(4 / 496, 9), score(0, 9), score(1 / 496, 9), 0, 0)
    able = probes.Probe("recall", 496, score(40 / 496, 9), score(0, 9), score(1 / 496, 9), 0, 0)
    assert not lucky.able and able.able


def test_the_key_stands_anywhere_within_the_asked_length(model: mo.Model) -> None:
    room, key = 200, "12345"
    lines = probes._fillers(model, key, room)

    def size(lines: int) -> int:
        return 1 + len(model.tokenizer.encode(probes._passkey_text(key, 0, lines) + f" {key}."))

    assert size(lines) <= room < size(lines + 1)
    text = probes._passkey_text(key, 2, 3)
    assert text.index(key) > 2 * len(probes._FILLER) and text.count(probes._FILLER) == 5


# Refusals


def test_a_tokenizer_without_digits_is_not_asked_for_them(demo: Path, tmp_path: Path) -> None:
    folder = variant(demo / "model", tmp_path / "model")
    letters = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="?"))
    letters.train_from_iterator(
        [probes._FILLER, "What is the pass key? Remember it. + = \n"],
        tokenizers.trainers.BpeTrainer(special_tokens=["?"], vocab_size=60, show_progress=False),
    )
    (folder / "tokenizer.json").unlink()
    letters.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").unlink()
    model = mo.load(folder)
    found = probes.run(model, model)
    assert [probe.name for probe in found.results] == ["recall"]
    assert set(found.refused) == {"passkey", "arithmetic"}
    assert "expected a tokenizer that holds" in found.to_dict()["refused"]["arithmetic"]
    assert "arithmetic: not asked: " in str(found)


def test_models_must_share_a_tokenizer(data: Path, model: mo.Model) -> None:
    other = mo.load(data / "models" / "stories260K")
    for probe in (probes.recall, probes.passkey, probes.arithmetic):
        with pytest.raises(mo.InvalidArgument, match="expected one tokenizer"):
            probe(model, other)


def test_the_context_bounds_the_questions(demo: Path, tmp_path: Path, model: mo.Model) -> None:
    short = mo.load(variant(demo / "model", tmp_path / "short", max_position_embeddings=48))
    with pytest.raises(mo.ContextOverflow, match="expected 65 tokens within the context, 48"):
        probes.recall(model, short)
    with pytest.raises(mo.Unsupported, match="expected room for"):
        probes.passkey(model, short)
    assert probes.recall(model, short, length=20).items == 16 * 19


@pytest.mark.parametrize(
    ("probe", "options"),
    [
        ("recall", {"strings": 0}),
        ("recall", {"length": 1}),
        ("passkey", {"texts": 0}),
        ("arithmetic", {"problems": 0}),
        ("arithmetic", {"digits": 0}),
        ("arithmetic", {"choices": 1}),
        ("arithmetic", {"choices": 7}),
        ("arithmetic", {"shots": -1}),
    ],
)
def test_sizes_that_make_no_sense_are_refused(probe: str, options: dict[str, int], model: mo.Model) -> None:
    (name,) = options
    with pytest.raises(mo.InvalidArgument, match=f"{probe}\\] {name}: expected at"):
        getattr(probes, probe)(model, model, **options)
