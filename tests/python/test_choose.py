# SPDX-License-Identifier: Apache-2.0
"""Constrained classification: exact scores over a trie of labels, calibrated."""

from __future__ import annotations

import json
from pathlib import Path

import modicum as mo
import numpy as np
import pytest
from modicum.cli import main

LABELS = ["opening hours", "opening day", "fees", "telephone numbers"]


@pytest.fixture(scope="module")
def model(demo: Path) -> mo.Model:
    return mo.load(demo / "model", dtype="f32")


def log_softmax(values: np.ndarray) -> np.ndarray:
    return values - np.logaddexp.reduce(values, axis=-1, keepdims=True)


def plain_score(model: mo.Model, prompt: str, label: str) -> float:
    ids, label_ids = model.tokenizer.encode(prompt), model.tokenizer.encode(label, add_special_tokens=False)
    rows = log_softmax(model.logits(ids + label_ids).astype(np.float64))[len(ids) - 1 :]
    return sum(row[token] for row, token in zip(rows, label_ids, strict=False))


def test_probabilities_are_those_of_reading_each_label_by_itself(model: mo.Model) -> None:
    chooser = mo.search.Chooser(model, LABELS, calibrate=False)
    text = "The reading room opens at nine."
    prompt = chooser.template.replace("{text}", text)
    expected = log_softmax(np.array([plain_score(model, prompt, " " + label) for label in LABELS]))
    np.testing.assert_allclose(chooser.log_probabilities(text), expected, atol=1e-5)
    choice = chooser(text)
    assert sum(choice.probabilities.values()) == pytest.approx(1)
    assert choice.label == LABELS[int(np.argmax(expected))] == str(choice)
    assert list(choice.probabilities.values()) == sorted(choice.probabilities.values(), reverse=True)


def test_calibration_makes_a_text_that_says_nothing_say_nothing(model: mo.Model) -> None:
    chooser = mo.search.Chooser(model, LABELS)
    from modicum.choose import CONTENT_FREE

    mean = np.mean([np.exp(chooser.log_probabilities(text)) for text in CONTENT_FREE], axis=0)
    biased = mo.search.Chooser(model, LABELS, calibrate=False)
    before = np.mean([np.exp(biased.log_probabilities(text)) for text in CONTENT_FREE], axis=0)
    assert np.abs(mean - 0.25).max() < 0.5 * np.abs(before - 0.25).max()


def test_a_label_that_begins_another_is_told_apart_by_its_end(model: mo.Model) -> None:
    chooser = mo.search.Chooser(model, ["opening", "opening hours"], calibrate=False)
    choice = chooser("When?")
    assert 0 < choice.probability < 1


def test_a_fitted_temperature_makes_examples_likelier(model: mo.Model) -> None:
    chooser = mo.search.Chooser(model, LABELS)
    texts = ["The room opens at nine.", "A card costs 12 crowns.", "Call 0417 552 913.", "Closed on Mondays."]
    labels = ["opening hours", "fees", "telephone numbers", "opening day"]

    def loss() -> float:
        return -sum(
            chooser.log_probabilities(t)[LABELS.index(label)] for t, label in zip(texts, labels, strict=True)
        )

    before = loss()
    assert chooser.fit(texts, labels) == chooser.temperature
    assert loss() <= before + 1e-9


@pytest.mark.parametrize("labels", [[], ["one"], ["a", "a"], ["a", " "]])
def test_labels_that_make_no_sense_are_refused(model: mo.Model, labels: list[str]) -> None:
    with pytest.raises(mo.InvalidArgument, match="labels"):
        mo.search.Chooser(model, labels)


def test_other_bad_input_is_named(model: mo.Model) -> None:
    with pytest.raises(mo.InvalidArgument, match="template"):
        mo.search.Chooser(model, LABELS, template="no place")
    chooser = mo.search.Chooser(model, LABELS)
    with pytest.raises(mo.InvalidArgument, match="examples"):
        chooser.fit(["a"], [])
    with pytest.raises(mo.InvalidArgument, match="'other'"):
        chooser.fit(["a"], ["other"])
    with pytest.raises(mo.ContextOverflow):
        chooser("word " * 5000)


def test_the_command_prints_a_label_and_its_probability(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(LABELS) + "\n\n")
    command = ["choose", "--model", str(demo / "model"), "--labels", str(labels), "The room opens at nine."]
    assert main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["results"][0]["label"] in LABELS
    assert set(report["results"][0]["probabilities"]) == set(LABELS)
    assert main(command) == 0
    assert report["results"][0]["label"] in capsys.readouterr().out
    examples = tmp_path / "examples.tsv"
    examples.write_text("A card costs 12 crowns.\tfees\nIt opens at nine.\topening hours\n")
    assert main([*command, "--examples", str(examples), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["temperature"] != 1
    examples.write_text("no tab\n")
    assert main([*command, "--examples", str(examples)]) == 1
    labels.write_text("only one\n")
    assert main(command) == 1
    labels.write_bytes(b"caf\xe9\n")
    assert main(command) == 1
    labels.unlink()
    assert main(command) == 1
    assert all(line.startswith("modicum: [") for line in capsys.readouterr().err.splitlines())
