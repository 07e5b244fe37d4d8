# SPDX-License-Identifier: Apache-2.0
"""Merges that cannot be done, are stopped, killed, or have no room: a clear word and nothing half-done."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import modicum as mo  # noqa: E402
from merging import (  # noqa: E402
    digests,
    equal,
    names,
    tensors_of,
    write_base,
    write_like,
    write_tuned,
)
from modicum.tune import Input, MergePlan, chat_vector  # noqa: E402
from modicum.tune.merge import merge_plainly  # noqa: E402


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A base, its chat model, and the base tuned on something else."""
    folder = tmp_path_factory.mktemp("three")
    base = write_base(folder / "base", "Qwen2")
    return base, write_tuned(base, folder / "chat", 1), write_tuned(base, folder / "onto", 2)


Write = Callable[[MergePlan, Path], Any]
WRITERS: dict[str, Write] = {
    "merge": lambda plan, out: mo.merge(plan, out, threads=1),
    "patch": lambda plan, out: mo.tune.write_patch(plan, out, others="drop", threads=1),
}


@pytest.fixture(params=WRITERS)
def write(request: pytest.FixtureRequest) -> Write:
    return WRITERS[request.param]


# What is refused before anything is written


def broken_copy(source: Path, to: Path, **change: Any) -> Path:
    """A model with some tensors changed, or left out where None is given."""
    tensors = tensors_of(source)
    for name, tensor in change.pop("tensors").items():
        tensors.pop(name)
        if tensor is not None:
            tensors[name] = tensor
    return write_like(source, to, tensors, **change)


Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize("role", [0, 1, 2], ids=["base", "chat", "onto"])
@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({Q: None}, rf"{Q}"),
        (
            {Q: torch.zeros(16, 32, dtype=torch.bfloat16)},
            rf"{Q}.*(\[32, 32\].*got \[16, 32\]|\[16, 32\].*got \[32, 32\])",
        ),
        ({Q: torch.zeros(32, 32, dtype=torch.int8)}, rf"{Q}.*I8"),
        ({Q: torch.zeros(32, 32, dtype=torch.float64)}, rf"{Q}.*F64"),
        ({"model.norm.weight": torch.ones(32, 1, dtype=torch.bfloat16)}, r"model\.norm\.weight.*\[32\]"),
    ],
    ids=["missing", "another shape", "integers", "doubles", "another rank"],
)
def test_tensors_that_do_not_go_together_are_named(
    tensors: dict[str, Any], message: str, role: int, three: tuple[Path, ...], write: Write, tmp_path: Path
) -> None:
    models = list(three)
    models[role] = broken_copy(models[role], tmp_path / "broken", tensors=tensors)
    with pytest.raises((mo.FormatError, mo.Unsupported), match=message):
        write(chat_vector(*models), tmp_path / "out")
    assert names(tmp_path) == ["broken"]


def test_a_tensor_too_many_is_named(three: tuple[Path, ...], write: Write, tmp_path: Path) -> None:
    base, chat, onto = three
    tensors = {**tensors_of(chat), "model.layers.1.extra.weight": torch.zeros(3)}
    more = write_like(chat, tmp_path / "more", tensors)
    with pytest.raises(mo.FormatError, match=r"model\.layers\.1\.extra\.weight"):
        write(chat_vector(base, more, onto), tmp_path / "out")
    assert names(tmp_path) == ["more"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "name", [Q, "model.embed_tokens.weight", "model.layers.2.self_attn.v_proj.bias", "model.norm.weight"]
)
def test_weights_that_are_no_numbers_are_named(
    name: str, value: float, three: tuple[Path, ...], write: Write, tmp_path: Path
) -> None:
    base, chat, onto = three
    tensor = tensors_of(chat)[name].clone()
    tensor.view(-1)[7] = value
    broken = broken_copy(chat, tmp_path / "broken", tensors={name: tensor})
    got = "NaN" if value != value else "infinity"
    with pytest.raises(mo.FormatError, match=re.escape(name) + rf".*at \[0, 7\].*finite number, got {got}"):
        write(chat_vector(base, broken, onto), tmp_path / "out")
    assert names(tmp_path) == ["broken"]


def test_a_sum_beyond_the_stored_type_is_refused(three: tuple[Path, ...], tmp_path: Path) -> None:
    base, chat, onto = three
    with pytest.raises(mo.Error, match=r"tensor .*f16|F16|finite"):
        mo.merge(chat_vector(base, chat, onto, alpha=1e9, dtype="f16"), tmp_path / "out")
    assert names(tmp_path) == []


def test_models_of_other_sizes_are_told_apart(three: tuple[Path, ...], write: Write, tmp_path: Path) -> None:
    base, _, onto = three
    for fields, message in (
        ({"num_hidden_layers": 2}, r"num_hidden_layers of .*expected 3, as .*got 2"),
        ({"rms_norm_eps": 1e-3}, "rms_norm_eps"),
    ):
        other = write_base(tmp_path / "other", "Qwen2", **fields)
        with pytest.raises(mo.InvalidArgument, match=message):
            write(chat_vector(base, other, onto), tmp_path / "out")
        for path in other.iterdir():
            path.unlink()
        other.rmdir()
    llama = write_base(tmp_path / "llama")
    with pytest.raises(mo.InvalidArgument, match=r"model_type of .*expected qwen2, as .*got llama"):
        write(chat_vector(base, llama, onto), tmp_path / "out")
    assert names(tmp_path) == ["llama"]


def test_models_that_are_not_there_are_named(three: tuple[Path, ...], write: Write, tmp_path: Path) -> None:
    base, chat, onto = three
    for models in (
        (tmp_path / "none", chat, onto),
        (base, tmp_path / "none", onto),
        (base, chat, tmp_path / "none"),
    ):
        with pytest.raises(mo.Error, match=re.escape(str(tmp_path / "none"))):
            write(chat_vector(*models), tmp_path / "out")
    plan = MergePlan("task_arithmetic", (Input(base, adapter=tmp_path / "none"),), base=base)
    with pytest.raises(mo.IoError, match="a PEFT adapter"):
        write(plan, tmp_path / "out")
    assert names(tmp_path) == []


def test_quantised_models_are_refused(three: tuple[Path, ...], write: Write, tmp_path: Path) -> None:
    base, chat, onto = three
    plan = mo.retrofit.Plan(quantize=mo.retrofit.Quantize(rounding="nearest", group=32))
    mo.retrofit.run(chat, tmp_path / "integers", plan, evaluate=False, threads=1)
    for models in ((base, tmp_path / "integers", onto), (base, chat, tmp_path / "integers")):
        with pytest.raises(mo.Unsupported, match="matrix of floats each, got integers; start from the model"):
            write(chat_vector(*models), tmp_path / "out")
    assert names(tmp_path) == ["integers"]


def test_what_is_there_already_is_never_overwritten(
    three: tuple[Path, ...], write: Write, tmp_path: Path
) -> None:
    base, chat, onto = three
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = digests(base)
    for taken in (out, tmp_path / "file", base, onto):
        with pytest.raises(mo.InvalidArgument, match=r"holds something|no such directory yet"):
            write(chat_vector(base, chat, onto), taken)
    assert names(out) == ["thesis.txt"] and names(tmp_path) == ["file", "out"]
    assert digests(base) == before


def test_an_empty_directory_is_filled_and_those_above_are_made(
    three: tuple[Path, ...], write: Write, tmp_path: Path
) -> None:
    base, chat, onto = three
    (tmp_path / "out").mkdir()
    write(chat_vector(base, chat, onto), tmp_path / "out")
    write(chat_vector(base, chat, onto), tmp_path / "a" / "b" / "out")
    assert digests(tmp_path / "out") == digests(tmp_path / "a" / "b" / "out")
    assert names(tmp_path) == ["a", "out"]


def test_where_nothing_may_be_written_it_is_told(
    three: tuple[Path, ...], write: Write, tmp_path: Path
) -> None:
    base, chat, onto = three
    (tmp_path / "file").write_text("")
    with pytest.raises(mo.IoError, match=r"Not a directory|File exists"):
        write(chat_vector(base, chat, onto), tmp_path / "file" / "out")
    assert names(tmp_path) == ["file"]


def test_a_bias_has_no_place_in_an_adapter(three: tuple[Path, ...], tmp_path: Path) -> None:
    base, chat, onto = three
    with pytest.raises(mo.Unsupported, match=r"_proj\.bias.*others: drop"):
        mo.tune.write_patch(chat_vector(base, chat, onto), tmp_path / "out")
    report = mo.tune.write_patch(chat_vector(base, chat, onto), tmp_path / "dropped", others="drop")
    assert any(name.endswith("bias") for name in report.dropped)
    assert names(tmp_path) == ["dropped"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank: expected at least 1, got 0"),
        ({"rank": -3}, "rank: expected at least 1, got -3"),
        ({"error": -0.1}, "error"),
        ({"error": 1.5}, "error"),
        ({"error": float("nan")}, "error"),
        ({"threads": 0}, "threads"),
        ({"others": "keep"}, "others"),
        ({"dtype": "f64"}, "dtype|f64"),
    ],
)
def test_options_of_an_adapter_that_mean_nothing_are_refused(
    options: dict[str, Any], message: str, three: tuple[Path, ...], tmp_path: Path
) -> None:
    base, chat, _ = three
    with pytest.raises(mo.Error, match=message):
        mo.tune.extract_lora(base, chat, tmp_path / "out", **options)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "options", [{"threads": 0}, {"shard_bytes": 0}, {"threads": -1}, {"shard_bytes": -1}]
)
def test_options_of_a_merge_that_mean_nothing_are_refused(
    options: dict[str, Any], three: tuple[Path, ...], tmp_path: Path
) -> None:
    with pytest.raises(mo.InvalidArgument, match=next(iter(options)) + ": expected at least 1 or None"):
        mo.merge(chat_vector(*three), tmp_path / "out", **options)
    assert names(tmp_path) == []


# What is stopped


def test_a_merge_that_is_stopped_leaves_nothing(three: tuple[Path, ...], tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    mo.merge(chat_vector(*three), tmp_path / "whole", progress=lambda *told: calls.append(told) or True)
    assert calls[-1][1] == calls[-1][2] and {stage for stage, *_ in calls} == {"merge"}
    for write in WRITERS.values():
        with pytest.raises(mo.Cancelled):
            stopped = {"progress": lambda *_: False}
            if write is WRITERS["merge"]:
                mo.merge(chat_vector(*three), tmp_path / "out", **stopped)
            else:
                mo.tune.write_patch(chat_vector(*three), tmp_path / "out", others="drop", **stopped)
        assert names(tmp_path) == ["whole"]


# Another process: told what to do by arguments, and held where the test wants it.
RUN = """
import json, resource, sys
import modicum as mo
from modicum.tune import MergePlan
from modicum.tune.merge import merge_plainly
plan, out, limit, hold, kind = sys.argv[1:]
plan = MergePlan.from_dict(json.loads(plan))
if int(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
print("ready", flush=True)
def progress(stage, done, total):
    if done >= int(hold) * total / 100:
        print("held", done, total, flush=True)
        sys.stdin.readline()
    return True
try:
    if kind == "merge":
        report = merge_plainly(plan, out, threads=1, sync_bytes=1, progress=progress)
        print("done", report.resumed, flush=True)
    else:
        report = mo.tune.write_patch(plan, out, others="drop", threads=1, progress=progress)
        print("done", flush=True)
except mo.Error as error:
    print("error", type(error).__name__, error, flush=True)
"""


def start(
    plan: MergePlan, out: Path, *, limit: int = 0, hold: int = 1000, kind: str = "merge"
) -> subprocess.Popen[str]:
    arguments = [json.dumps(plan.to_dict()), str(out), str(limit), str(hold), kind]
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def held(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("held"):
            return
    raise AssertionError("it was not held")


def last_line(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=120)
    return output.splitlines()[-1]


def kill(process: subprocess.Popen[str]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> MergePlan:
    """Of models with tensors enough to be told of between them."""
    folder = tmp_path_factory.mktemp("larger")
    base = write_base(folder / "base", num_hidden_layers=24, vocab_size=2000, intermediate_size=96)
    models = (base, write_tuned(base, folder / "chat", 1), write_tuned(base, folder / "onto", 2))
    return MergePlan("ties", (Input(models[1], density=0.5), Input(models[2], density=0.5)), base=base)


def test_a_merge_killed_in_the_middle_goes_on_to_the_same_bytes(larger: MergePlan, tmp_path: Path) -> None:
    merge_plainly(larger, tmp_path / "whole")
    folder = tmp_path / "killed"
    folder.mkdir()
    for hold in (30, 70):
        process = start(larger, folder / "out", hold=hold)
        held(process)
        kill(process)
        (left,) = names(folder)
        assert left.startswith(".out.merge-")
    report = merge_plainly(larger, folder / "out")
    assert 0 < report.resumed < report.tensors
    assert f"{report.resumed} tensors come from a run that was stopped" in str(report)
    assert names(folder) == ["out"] and digests(folder / "out") == digests(tmp_path / "whole")
    whole = merge_plainly(larger, tmp_path / "again")
    assert report.kinds == whole.kinds


def test_an_adapter_whose_writer_was_killed_is_written_anew(larger: MergePlan, tmp_path: Path) -> None:
    mo.tune.write_patch(larger, tmp_path / "whole", others="drop", threads=1)
    folder = tmp_path / "killed"
    folder.mkdir()
    process = start(larger, folder / "out", hold=50, kind="patch")
    held(process)
    kill(process)
    assert not (folder / "out").exists()
    mo.tune.write_patch(larger, folder / "out", others="drop", threads=1)
    assert names(folder) == ["out"] and digests(folder / "out") == digests(tmp_path / "whole")


@pytest.mark.parametrize("change", ["plan", "weights"])
def test_what_a_killed_merge_of_something_else_left_is_not_gone_on_with(
    change: str, larger: MergePlan, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    folder.mkdir()
    process = start(larger, folder / "out", hold=60)
    held(process)
    kill(process)
    assert larger.base is not None
    if change == "plan":
        other = larger.at(0.5)
    else:
        path = Path(larger.models[0].model) / "model.safetensors"
        os.utime(path)  # tuned again, for all that can be known
        other = larger
    report = merge_plainly(other, folder / "out")
    assert report.resumed == 0 and names(folder) == ["out"]
    merge_plainly(other, tmp_path / "whole")
    assert equal(tensors_of(folder / "out"), tensors_of(tmp_path / "whole"))


@pytest.mark.parametrize("damage", ["note", "shard", "header"])
def test_what_a_crash_broke_is_made_anew(damage: str, larger: MergePlan, tmp_path: Path) -> None:
    merge_plainly(larger, tmp_path / "whole")
    folder = tmp_path / "broken"
    folder.mkdir()
    process = start(larger, folder / "out", hold=60)
    held(process)
    kill(process)
    (work,) = folder.iterdir()
    note, shard = work / ".finished", work / "model.safetensors"
    if damage == "note":
        note.write_bytes(b"99999\nnonsense")
    elif damage == "shard":
        shard.write_bytes(shard.read_bytes()[:-10])
    else:
        shard.write_bytes(b"\0" * 20 + shard.read_bytes()[20:])
    report = merge_plainly(larger, folder / "out")
    assert report.resumed == 0
    assert digests(folder / "out") == digests(tmp_path / "whole")


def test_two_at_once_on_one_output_are_not_let(larger: MergePlan, tmp_path: Path) -> None:
    first = start(larger, tmp_path / "out", hold=40)
    held(first)
    try:
        with pytest.raises(mo.InvalidArgument, match="nobody else writes, got another process at work on it"):
            merge_plainly(larger, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    finally:
        output, _ = first.communicate("\n" * 1000, timeout=120)
    assert output.splitlines()[-1] == "done 0"
    assert names(tmp_path) == ["out"]


def test_something_that_appears_meanwhile_is_kept(larger: MergePlan, tmp_path: Path) -> None:
    def progress(_: str, done: int, total: int) -> bool:
        if done > total / 2 and not (tmp_path / "out").exists():
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "thesis.txt").write_text("mine")
        return True

    with pytest.raises(mo.InvalidArgument, match="holds something"):
        mo.merge(larger, tmp_path / "out", progress=progress)
    assert names(tmp_path / "out") == ["thesis.txt"] and names(tmp_path) == ["out"]


# What has no room


@pytest.mark.parametrize("kind", ["merge", "patch"])
def test_files_that_may_not_grow_are_told_and_nothing_is_left(
    kind: str, larger: MergePlan, tmp_path: Path
) -> None:
    line = last_line(start(larger, tmp_path / "out", limit=40_000, kind=kind))
    assert line.startswith("error IoError") and "File too large" in line, line
    assert names(tmp_path) == []
    assert last_line(start(larger, tmp_path / "out", kind=kind)).startswith("done")
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


@pytest.mark.parametrize("kind", ["merge", "patch"])
def test_a_full_disk_is_told_and_with_room_it_ends(
    kind: str, larger: MergePlan, small_disk: Path, tmp_path: Path
) -> None:
    def run(out: Path) -> None:
        if kind == "merge":
            mo.merge(larger, out, threads=1)
        else:
            mo.tune.write_patch(larger, out, others="drop", threads=1)

    run(tmp_path / "whole")
    refused = 0
    for free in range(0, 2_000_000, 150_000):
        (small_disk / "filler").write_bytes(b"")
        room = os.statvfs(small_disk).f_bavail * 4096
        (small_disk / "filler").write_bytes(b"x" * max(0, room - free))
        try:
            run(small_disk / "out")
            break
        except mo.IoError as error:
            refused += 1
            assert re.search("No space left|free some space", str(error)), error
        assert names(small_disk) == ["filler"]
    assert refused > 0 and digests(small_disk / "out") == digests(tmp_path / "whole")
    assert names(small_disk) == ["filler", "out"]
