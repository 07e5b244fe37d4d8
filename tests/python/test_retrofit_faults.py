# SPDX-License-Identifier: Apache-2.0
"""Retrofits that cannot be done, are stopped, killed, or have no room: a clear word and nothing half-done."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

mo = pytest.importorskip("modicum")
np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("compressed_tensors")

from modicum.retrofit import Depth, Ffn, Kv, LowRank, Plan, Quantize, Window  # noqa: E402
from retrofitted import (  # noqa: E402
    calibration_of,
    config_of,
    digests,
    random_text,
    retrofit,
    tensors_of,
    write_source,
)
from safetensors.torch import save_file  # noqa: E402

ALL = Plan(kv=Kv(2), ffn=Ffn(128), depth=Depth(2), quantize=Quantize(bits=4, head_bits=8))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source") / "in", "Qwen2", num_hidden_layers=5)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# What is refused before any work


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan(kv=Kv(3)), r"kv\.kv_heads: expected a divisor of 4, and smaller, got 3"),
        (Plan(kv=Kv(4)), r"kv\.kv_heads: expected a divisor of 4"),
        (Plan(ffn=Ffn(192)), r"ffn\.intermediate_size: expected a multiple of 64 below 192, got 192"),
        (Plan(ffn=Ffn(100)), r"ffn\.intermediate_size: expected a multiple of 64"),
        (Plan(depth=Depth(0)), "depth: expected layers among 1 to 4"),
        (Plan(depth=Depth(3, 3)), "depth: expected layers among 1 to 4.*got 3 from 3"),
        (Plan(window=Window(256, (1,))), r"window\.window: expected 1 to 255, got 256"),
        (Plan(window=Window(8, (1, 5))), r"window\.layers: expected layers among 0 to 4, got 5"),
        (Plan(window=Window(8, ())), r"window\.layers: .*got none"),
        (Plan(quantize=Quantize(bits=5)), "quantize bits: expected 4 or 8"),
        (
            Plan(quantize=Quantize(bits=4, group=0)),
            r"quantize\.group: expected a multiple of 32, or 0 with 8",
        ),
        (Plan(quantize=Quantize(group=48)), r"quantize\.group: expected a multiple of 32"),
        (Plan(quantize=Quantize(layer_bits={7: 4})), r"quantize\.layer_bits: .*among 0 to 4, got 7"),
        (Plan(low_rank=LowRank(("qkv_proj",), 0.5)), r"low_rank\.modules: expected q_proj.*qkv_proj"),
    ],
)
def test_plans_that_do_not_fit_are_refused_by_field(
    plan: Plan, message: str, source: Path, tmp_path: Path
) -> None:
    for refused in (lambda: retrofit(source, tmp_path / "out", plan), lambda: estimate(source, plan)):
        with pytest.raises(mo.InvalidArgument, match=message):
            refused()
    assert names(tmp_path) == []


def estimate(source: Path, plan: Plan) -> None:
    mo.retrofit.estimate(source, plan, random_text())


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"kv": {"kv_heads": 2, "refits": "none"}}, r"plan: kv\.refits: expected a known field"),
        ({"ffn": {"intermediate_size": 128, "refit": "some"}}, r"refit.*one of least_squares, alternating"),
        ({"quantise": {}}, "plan: quantise: expected a known field"),
        ({"depth": {"first": -1, "count": 1}}, r"depth\.first"),
        ({"schema": "modicum.retrofit.plan/2"}, "schema"),
    ],
)
def test_dicts_that_are_no_plan_are_refused_by_field(
    plan: dict[str, Any], message: str, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(mo.FormatError, match=message):
        mo.retrofit.run(source, tmp_path / "out", plan, calibration=random_text())
    assert names(tmp_path) == []


def test_too_little_text_is_told_with_how_much_is_needed(source: Path, tmp_path: Path) -> None:
    short = random_text(4, 48)
    for plan in (Plan(ffn=Ffn(128)), Plan(quantize=Quantize()), Plan(low_rank=LowRank(("down_proj",), 0.5))):
        with pytest.raises(mo.InvalidArgument, match=r"at least 192 tokens .*better 768.*got 144; give more"):
            retrofit(source, tmp_path / "out", plan, calibration=short)
    with pytest.raises(mo.InvalidArgument, match=r"at least 64 tokens beside those held out"):
        retrofit(source, tmp_path / "out", Plan(kv=Kv(2)), calibration=random_text(3, 24))
    with pytest.raises(mo.InvalidArgument, match="calibration"):
        retrofit(source, tmp_path / "out", Plan(kv=Kv(2)), calibration=None)
    assert names(tmp_path) == []


@pytest.mark.parametrize("token", [-1, 160, 2**31 - 1])
def test_tokens_outside_the_vocabulary_are_refused(token: int, source: Path, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 160, (14, 48))
    ids[5, 5] = token
    with pytest.raises(mo.InvalidArgument, match=rf"calibration token: expected 0 to 159, got {token}"):
        retrofit(source, tmp_path / "out", Plan(kv=Kv(2)), calibration=calibration_of(ids, 3))
    assert names(tmp_path) == []


def test_sequences_longer_than_the_context_are_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(
        mo.InvalidArgument, match="sequences of 1 to 256 tokens, got 1200 tokens in sequences of 300"
    ):
        retrofit(source, tmp_path / "out", Plan(kv=Kv(2)), calibration=random_text(4, 300))


def test_heads_with_normalised_keys_cannot_be_merged_but_all_else_goes(tmp_path: Path) -> None:
    source = write_source(tmp_path / "in", "Qwen3", head_dim=16)
    with pytest.raises(mo.Unsupported, match="QK-norm"):
        retrofit(source, tmp_path / "out", Plan(kv=Kv(2)))
    assert names(tmp_path) == ["in"]
    retrofit(source, tmp_path / "out", Plan(ffn=Ffn(128), quantize=Quantize()))
    assert config_of(tmp_path / "out")["model_type"] == "qwen3"


@pytest.mark.parametrize("plan", [ALL, Plan(depth=Depth(1, refit="none")), Plan()], ids=str)
def test_what_is_there_already_is_never_overwritten(plan: Plan, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(mo.InvalidArgument, match="holds something"):
        retrofit(source, out, plan)
    assert names(tmp_path) == ["out"] and names(out) == ["thesis.txt"]
    with pytest.raises(mo.InvalidArgument, match="holds something"):
        retrofit(source, source, plan)


def test_what_is_quantised_or_factored_already_is_refused(source: Path, tmp_path: Path) -> None:
    retrofit(source, tmp_path / "q", Plan(quantize=Quantize(rounding="nearest")), calibration=None)
    retrofit(source, tmp_path / "f", Plan(low_rank=LowRank(("up_proj",), 0.5)))
    for folder, message in (("q", "quantised already"), ("f", "low rank")):
        for plan in (Plan(kv=Kv(2)), Plan(quantize=Quantize()), Plan()):
            with pytest.raises(mo.Unsupported, match=message + ".*start from the model that it was made of"):
                retrofit(tmp_path / folder, tmp_path / "out", plan)
    assert names(tmp_path) == ["f", "q"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.layers.1.self_attn.k_proj.weight",
        "model.layers.1.self_attn.v_proj.bias",
        "model.layers.1.mlp.down_proj.weight",
        "model.layers.1.post_attention_layernorm.weight",
        "model.layers.2.mlp.gate_proj.weight",
    ],
)
def test_weights_that_are_no_numbers_are_named(name: str, value: float, source: Path, tmp_path: Path) -> None:
    broken = tmp_path / "in"
    broken.mkdir()
    (broken / "config.json").write_bytes((source / "config.json").read_bytes())
    tensors = tensors_of(source)
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[7] = value
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    plans = [Plan(kv=Kv(2)), Plan(ffn=Ffn(128, refit="least_squares")), Plan(quantize=Quantize())]
    if "layers.2" in name:
        plans = [Plan(depth=Depth(2))]  # a layer that goes is read as well
    for plan in plans:
        with pytest.raises(mo.FormatError, match=re.escape(name) + ".*finite"):
            retrofit(broken, tmp_path / "out", plan)
        assert not (tmp_path / "out").exists()


# What is stopped


def test_a_run_that_is_stopped_leaves_no_output_and_goes_on_where_it_was(
    source: Path, tmp_path: Path
) -> None:
    retrofit(source, tmp_path / "whole", ALL)
    calls: list[str] = []
    retrofit(source, tmp_path / "counted", ALL, progress=lambda *told: calls.append(told[0]) or True)
    assert {"retrofit", "retrofit.write"} <= set(calls)
    folder = tmp_path / "stopped"
    folder.mkdir()
    resumed = []
    for stop in (1, len(calls) // 3, calls.index("retrofit.write") + 1):
        seen = 0

        def progress(*_: Any, stop: int = stop) -> bool:
            nonlocal seen
            seen += 1
            return seen < stop

        with pytest.raises(mo.Cancelled):
            retrofit(source, folder / "out", ALL, progress=progress)
        assert all(name.startswith(".out.retrofit-") for name in names(folder))
        assert len(names(folder)) <= 1
        kept = names(folder / names(folder)[0]) if names(folder) else []
        assert not any("tmp" in name or "part" in name for name in kept)
        resumed.append(sum(re.fullmatch(r"layer-\d+\.json", name) is not None for name in kept))
    assert resumed[0] == 0 < resumed[1] < 4 < resumed[2]
    report = retrofit(source, folder / "out", ALL)
    assert any(warning.startswith("4 layers come from") for warning in report.warnings)
    assert names(folder) == ["out"]
    assert digests(folder / "out") == digests(tmp_path / "whole")


@pytest.mark.parametrize("plan", [Plan(), Plan(depth=Depth(1, refit="none"))], ids=str)
def test_a_run_without_text_is_stopped_as_well(plan: Plan, source: Path, tmp_path: Path) -> None:
    with pytest.raises(mo.Cancelled):
        retrofit(source, tmp_path / "out", plan, calibration=None, progress=lambda *_: False)
    assert not (tmp_path / "out").exists()


RUN = """
import json, resource, sys
import numpy as np
import modicum as mo
from modicum.retrofit import Calibration
source, out, plan, calibration, limit = sys.argv[1:]
ids = np.load(calibration)
calibration = Calibration(ids[:-3], ids[-3:], sources=[], bos=[], seed=0)
if int(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
print("ready", flush=True)
def progress(stage, done, total):
    print("at", stage, done, flush=True)
    if stage.startswith("hold"):
        sys.stdin.readline()
    return True
try:
    report = mo.retrofit.run(
        source, out, json.loads(plan), calibration=calibration, evaluate=False, threads=1, progress=progress
    )
    print("done", json.dumps(report.warnings), flush=True)
except mo.Error as error:
    print("error", type(error).__name__, error, flush=True)
"""


def start(source: Path, out: Path, plan: Plan, calibration: Path, limit: int = 0) -> subprocess.Popen[str]:
    arguments = [str(source), str(out), plan.to_json(), str(calibration), str(limit)]
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def last_line(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=120)
    return output.splitlines()[-1]


@pytest.fixture
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "ids.npy"
    calibration = random_text()
    np.save(path, np.concatenate([calibration.sequences, calibration.held_out]))
    return path


def records(folder: Path) -> list[Path]:
    return sorted(folder.glob(".out.retrofit-*/layer-*.json"))


def test_a_run_killed_in_the_middle_goes_on_to_the_same_bytes(
    source: Path, text: Path, tmp_path: Path
) -> None:
    retrofit(source, tmp_path / "whole", ALL)
    folder = tmp_path / "killed"
    folder.mkdir()
    for wanted in (1, 3):
        process = start(source, folder / "out", ALL, text)
        assert process.stdout is not None
        for line in process.stdout:
            if len(records(folder)) >= wanted or line.startswith(("done", "error")):
                break
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        assert not (folder / "out").exists()
        assert wanted <= len(records(folder)) < 5
    done = len(records(folder))
    report = retrofit(source, folder / "out", ALL)
    assert any(w.startswith(f"{min(done, 4)} layers come from a run") for w in report.warnings)
    assert digests(folder / "out") == digests(tmp_path / "whole")
    assert names(folder) == ["out"]


@pytest.mark.parametrize("damage", ["tensors", "record", "stream"])
def test_what_a_crash_broke_of_a_run_is_made_anew(damage: str, source: Path, tmp_path: Path) -> None:
    plan = Plan(kv=Kv(2), ffn=Ffn(128, refit="least_squares"))
    retrofit(source, tmp_path / "whole", plan)
    folder = tmp_path / "broken"
    folder.mkdir()

    def progress(*_: Any) -> bool:
        return len(records(folder)) < 3

    with pytest.raises(mo.Cancelled):
        retrofit(source, folder / "out", plan, progress=progress)
    (work,) = folder.iterdir()
    victim = work / {"tensors": "layer-00002.safetensors", "record": "layer-00002.json"}.get(damage, "")
    if damage == "stream":
        (victim,) = work.glob("teacher-3*")
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    retrofit(source, folder / "out", plan)
    assert digests(folder / "out") == digests(tmp_path / "whole")


def test_what_an_older_run_left_is_swept_and_other_text_starts_afresh(source: Path, tmp_path: Path) -> None:
    plan = Plan(kv=Kv(2))
    with pytest.raises(mo.Cancelled):
        retrofit(source, tmp_path / "out", plan, progress=lambda *_: len(records(tmp_path)) < 2)
    other = random_text(seed=8)
    report = retrofit(source, tmp_path / "out", plan, calibration=other)
    assert not any("come from" in warning for warning in report.warnings)
    assert names(tmp_path) == ["out"]


def test_two_at_once_on_one_output_are_not_let(source: Path, text: Path, tmp_path: Path) -> None:
    first = start(source, tmp_path / "out", ALL, text)
    assert first.stdout is not None
    try:
        for line in first.stdout:
            if line.startswith("at retrofit"):
                break
        os.kill(first.pid, signal.SIGSTOP)
        with pytest.raises(mo.InvalidArgument, match="nobody else writes, got another process at work on it"):
            retrofit(source, tmp_path / "out", ALL)
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert last_line(first).startswith("done")
    assert names(tmp_path) == ["out"]


# What has no room


@pytest.mark.parametrize("limit", [10_000, 60_000, 150_000])
def test_files_that_may_not_grow_are_told_and_nothing_is_left_as_output(
    limit: int, source: Path, text: Path, tmp_path: Path
) -> None:
    line = last_line(start(source, tmp_path / "out", Plan(kv=Kv(2)), text, limit))
    assert line.startswith("error IoError") and "File too large" in line, line
    assert not (tmp_path / "out").exists()
    assert all(name.startswith(".out.retrofit-") for name in names(tmp_path))
    assert last_line(start(source, tmp_path / "out", Plan(kv=Kv(2)), text)).startswith("done")
    assert names(tmp_path) == ["out"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no mount: {error}")
    if done.returncode != 0:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_told_and_with_room_the_run_ends(
    source: Path, small_disk: Path, tmp_path: Path
) -> None:
    retrofit(source, tmp_path / "whole", Plan(kv=Kv(2)))
    refused = 0
    for free in range(0, 1_400_000, 200_000):
        (small_disk / "filler").write_bytes(b"")
        room = os.statvfs(small_disk).f_bavail * 4096
        (small_disk / "filler").write_bytes(b"x" * max(0, room - free))
        try:
            retrofit(source, small_disk / "out", Plan(kv=Kv(2)))
            break
        except mo.IoError as error:
            refused += 1
            assert re.search("No space left|free some space", str(error)), error
        assert not (small_disk / "out").exists()
    (small_disk / "filler").unlink()
    assert refused > 2
    if not (small_disk / "out").exists():
        retrofit(source, small_disk / "out", Plan(kv=Kv(2)))
    assert digests(small_disk / "out") == digests(tmp_path / "whole")
    assert names(small_disk) == ["out"]


# Memory

MEMORY = """
import ctypes, gc, json, sys
from pathlib import Path
import numpy as np
import modicum as mo
from modicum.retrofit import Calibration
source, out, plan, calibration = sys.argv[1:]
ids = np.load(calibration)
calibration = Calibration(ids[:-4], ids[-4:], sources=[], bos=[], seed=0)
planned = mo.retrofit.estimate(source, json.loads(plan), calibration).memory_bytes  # opens a LAPACK, too
def sizes():
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0]: int(words[1]) << 10 for words in lines if words[-1] == "kB"}
gc.collect()
ctypes.CDLL(None).malloc_trim(0)
Path("/proc/self/clear_refs").write_text("5")
before = sizes()["RssAnon:"]
mo._core.retrofit_run(
    source, out, plan, ids, held_out=4, relative=True, work="", threads=2, progress=None
)
after = sizes()
print(after["VmHWM:"] - after["RssFile:"] - after["RssShmem:"] - before, planned)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be reset here")
@pytest.mark.parametrize(
    "plan",
    [
        Plan(kv=Kv(2), ffn=Ffn(768), depth=Depth(1)),
        Plan(quantize=Quantize(bits=4, head_bits=8)),
        Plan(quantize=Quantize(rounding="nearest", head_bits=8)),
    ],
    ids=str,
)
def test_private_memory_stays_within_the_estimate(plan: Plan, tmp_path: Path) -> None:
    shape = {"hidden_size": 256, "intermediate_size": 1024, "vocab_size": 6000, "num_hidden_layers": 2}
    source = write_source(tmp_path / "in", **shape, num_key_value_heads=4)
    np.save(tmp_path / "ids.npy", np.random.default_rng(1).integers(0, 6000, (20, 128)).astype(np.int32))
    arguments = [source, tmp_path / "out", plan.to_json(), tmp_path / "ids.npy"]
    command = [sys.executable, "-c", MEMORY, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    peak, planned = map(int, done.stdout.split())
    assert 0 < peak < planned, (peak, planned)
