# SPDX-License-Identifier: Apache-2.0
"""A student beside its teacher: the measures against torch's, what is refused, and that it can be stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

mo = pytest.importorskip("modicum")
np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from parity import VOCABULARY, Pair, random_pair, stored_pair  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402
from tiny import write_tiny_model  # noqa: E402


def torch_comparison(teacher: Any, student: Any, sequences: Any) -> dict[str, Any]:
    """The measures in torch's float64, from transformers' float32 logits."""
    ids = torch.tensor(sequences, dtype=torch.long)
    with torch.inference_mode():
        p, q = (model(ids).logits[:, :-1].double().log_softmax(-1) for model in (teacher, student))
    kl = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    nll_p, nll_q = (-logs.gather(-1, ids[:, 1:, None]).squeeze(-1) for logs in (p, q))

    def error(x: Any) -> float:
        return float(x.mean(1).std(unbiased=True)) / len(x) ** 0.5

    return {
        "teacher": float(nll_p.mean()),
        "student": float(nll_q.mean()),
        "loss_change_standard_error": error(nll_q - nll_p),
        "kl": float(kl.mean()),
        "kl_standard_error": error(kl),
        "kl_95": float(np.quantile(kl.numpy(), 0.95, method="inverted_cdf")),
        "kl_max": float(kl.max()),
        "top1_agreement": float((p.argmax(-1) == q.argmax(-1)).double().mean()),
    }


def check(teacher: Pair, student: Pair, sequences: Any, relative: float) -> None:
    ours = mo.retrofit.compare(teacher.ours, student.ours, sequences)
    theirs = torch_comparison(teacher.theirs, student.theirs, sequences)
    assert ours.teacher.loss == pytest.approx(theirs.pop("teacher"), rel=relative)
    assert ours.student.loss == pytest.approx(theirs.pop("student"), rel=relative)
    assert {name: getattr(ours, name) for name in theirs} == pytest.approx(theirs, rel=relative)
    alone = mo.retrofit.perplexity(student.ours, sequences)
    assert alone == ours.student
    assert alone.value == pytest.approx(np.exp(alone.loss))


def test_random_models_compare_as_in_torch(tmp_path: Path) -> None:
    llama, qwen = random_pair("llama", tmp_path / "llama"), random_pair("qwen2", tmp_path / "qwen2")
    sequences = np.random.default_rng(0).integers(0, VOCABULARY, (40, 31))
    check(llama, qwen, sequences.astype(np.int32), 1e-3)
    check(qwen, llama, sequences.tolist(), 1e-3)


def test_a_trained_model_and_its_damaged_self_compare_as_in_torch(data: Path, tmp_path: Path) -> None:
    teacher = stored_pair(data / "models" / "stories260K", [])
    text = (data / "corpora" / "tinystories" / "tinystories_cased.txt").read_text("utf-8")[:20000]
    ids = teacher.ours.tokenizer.encode(text)
    sequences = np.array(ids[: len(ids) // 128 * 128], np.int32).reshape(-1, 128)
    shutil.copytree(teacher.ours.path, tmp_path / "damaged")
    random = np.random.default_rng(0)
    weights = {
        name: (w * random.normal(1, 0.1, w.shape)).astype(np.float32)
        for name, w in load_file(teacher.ours.path / "model.safetensors").items()
    }
    (tmp_path / "damaged" / "model.safetensors").unlink()
    save_file(weights, tmp_path / "damaged" / "model.safetensors", metadata={"format": "pt"})
    student = stored_pair(tmp_path / "damaged", [])
    check(teacher, student, sequences, 2e-4)
    found = mo.retrofit.compare(teacher.ours, student.ours, sequences)
    assert 0.002 < found.kl < 0.5
    assert found.perplexity_ratio > 1
    assert 0.7 < found.top1_agreement < 1


def test_a_model_beside_itself_has_lost_nothing(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "tiny")
    one, two = mo.load(folder, threads=1), mo.load(folder, threads=2)
    sequences = np.random.default_rng(1).integers(0, 258, (3, 50), dtype=np.int32)
    for other in (one, two):
        found = mo.retrofit.compare(one, other, sequences)
        assert (found.kl, found.kl_95, found.kl_max, found.kl_standard_error) == (0, 0, 0, 0)
        assert (found.top1_agreement, found.perplexity_ratio) == (1, 1)
        assert found.loss_change_standard_error == 0
        assert found.teacher == found.student
        assert found.teacher.loss_standard_error > 0


def test_a_comparison_is_json_and_comes_back(tmp_path: Path) -> None:
    one, two = (mo.load(write_tiny_model(tmp_path / str(seed), seed=seed)) for seed in (0, 1))
    found = mo.retrofit.compare(one, two, [[1, 2, 3, 4]])
    assert found.kl_standard_error is None
    facts = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert facts["student"]["perplexity"] == found.student.value
    assert mo.retrofit.Comparison.from_dict(facts) == found
    assert "over" in str(found.teacher)
    assert "KL" in str(found)
    assert "±" not in str(found)


@pytest.mark.parametrize(
    ("sequences", "said"),
    [
        (np.zeros((2, 3), np.float32), "expected integers [sequences, length], got float32"),
        (np.zeros(3, np.int32), "got int32 [3]"),
        ([[1, 2], [3]], "got several"),
        (np.zeros((0, 5), np.int32), "one or more"),
        (np.zeros((3, 1), np.int32), "at least 2 tokens"),
        ([[1, 258]], "token 1 of sequence 0: expected 0 to 257, got 258"),
        ([[1, -1]], "got -1"),
        ([[1, 2**32 + 1]], "beyond int32"),
    ],
)
def test_sequences_that_are_none_are_refused(sequences: Any, said: str, tmp_path: Path) -> None:
    model = mo.load(write_tiny_model(tmp_path / "tiny"))
    with pytest.raises(mo.InvalidArgument) as error:
        mo.retrofit.compare(model, model, sequences)
    assert said in str(error.value)
    with pytest.raises(mo.InvalidArgument):
        mo.retrofit.perplexity(model, sequences)


def test_models_of_two_vocabularies_are_refused(tmp_path: Path) -> None:
    tiny = mo.load(write_tiny_model(tmp_path / "tiny"))
    other = random_pair("llama", tmp_path / "other").ours
    with pytest.raises(mo.InvalidArgument, match="258 and 160 tokens"):
        mo.retrofit.compare(tiny, other, [[1, 2]])


def test_a_sequence_beyond_the_context_of_either_is_refused(tmp_path: Path) -> None:
    long = mo.load(write_tiny_model(tmp_path / "long"))
    short = mo.load(write_tiny_model(tmp_path / "short", context=8))
    assert mo.retrofit.compare(long, short, [list(range(9))]).kl == 0
    with pytest.raises(mo.ContextOverflow):
        mo.retrofit.compare(long, short, [list(range(10))])


def test_progress_is_told_and_stops(tmp_path: Path) -> None:
    model = mo.load(write_tiny_model(tmp_path / "tiny"))
    sequences = np.ones((20, 60), np.int32)
    seen: list[tuple[str, int, int]] = []
    mo.retrofit.compare(model, model, sequences, progress=lambda *facts: seen.append(facts))
    assert seen[-1] == ("compare", 20 * 59, 20 * 59)
    with pytest.raises(mo.Cancelled):
        mo.retrofit.perplexity(model, sequences, progress=lambda *_: False)


ENDLESS = """
import sys
import modicum as mo, numpy as np
model = mo.load(sys.argv[1], threads=1)
tell = lambda stage, done, total: print("reading", flush=True) if done else None
try:
    mo.retrofit.compare(model, model, np.ones((200_000, 500), np.int32), progress=tell)
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


def test_ctrl_c_stops_it(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "tiny")
    environment = {**os.environ, "PYTHONPATH": str(Path(mo.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(folder)], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reading\n"
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert out.splitlines()[-1] == "stopped"
    assert process.returncode == 0
