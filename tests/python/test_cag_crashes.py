# SPDX-License-Identifier: Apache-2.0
"""Knowledge caches and processes: writers that are killed, run out of disk or compete; readers that share."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import modicum as mo
import pytest
from tiny import write_tiny_model

COMMON = """
import os, resource, sys
import modicum as mo
def document(name, text):
    return mo.cag.Document(name, name, text, (), converted=False, volatile=False)
"""


def document(name: str, text: str) -> mo.cag.Document:
    return mo.cag.Document(name, name, text, (), converted=False, volatile=False)


OLD, NEW = ([document("a.md", "Same\n" * 20), document("b.md", text)] for text in ("Old\n", "New, longer\n"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> mo.Model:
    return mo.load(write_tiny_model(tmp_path_factory.mktemp("tiny")), threads=1)


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", COMMON + code, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def end(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


# Forks a writer for each line that it reads. The model is loaded after the fork, which no thread survives.
NURSERY = """
model_path, path, warm = sys.argv[1:]
texts = [open(f"{path}-{i}.txt").read() for i in (0, 1)]
for line in sys.stdin:
    kind, turn = line.split()
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        print("gone", flush=True)
        continue
    model = mo.load(model_path, threads=1)
    # What a process does only once is over before the moments are counted.
    mo.cag.build(model, [document("a.md", "Warm")], warm)
    print(os.getpid(), flush=True)
    turn = int(turn)
    while True:
        turn += 1
        documents = [document("a.md", "Same\\n" * 20), document("b.md", texts[turn % 2])]
        if kind == "build":
            mo.cag.build(model, documents, path)
        else:
            mo.cag.update(path, model, documents)
"""


@pytest.mark.parametrize("kind", ["build", "update"])
def test_kill_9_at_100_moments_leaves_the_old_or_the_new_file(kind: str, model: mo.Model, tmp_path: Path):
    folder = tmp_path / "caches"
    folder.mkdir()
    path = folder / "a.kv"
    wanted = []
    for i, documents in enumerate((OLD, NEW)):
        (folder / f"a.kv-{i}.txt").write_text(documents[1].text)
        mo.cag.build(model, documents, path)
        wanted.append(path.read_bytes())
    given = sorted(p.name for p in folder.iterdir())
    began = time.perf_counter()
    mo.cag.build(model, NEW, path)
    span = time.perf_counter() - began
    dice = random.Random(4)
    nursery = start(NURSERY, model.path, path, tmp_path / "warm.kv")
    seen, leftovers = set(), 0
    try:
        for turn in range(100):
            tell(nursery, f"{kind} {turn}")
            child = int(line_of(nursery))
            time.sleep(dice.random() * 4 * span)
            os.kill(child, signal.SIGKILL)
            assert line_of(nursery) == "gone"
            seen.add(wanted.index(path.read_bytes()))
            mo.cag.verify(path)
            assert mo.cag.open(path, model).ask("What?", max_new_tokens=1).ids
            left = sorted(p.name for p in folder.iterdir() if p.name not in given)
            assert len(left) <= 1, left
            leftovers += len(left)
    finally:
        end(nursery)
    assert seen == {0, 1}
    assert leftovers > 0, "no kill came while the file was written"
    mo.cag.update(path, model, OLD)
    mo.cag.update(path, model, NEW)
    assert sorted(p.name for p in folder.iterdir()) == given
    assert path.read_bytes() == wanted[1]


LIMITED = """
model_path, path, limit = sys.argv[1:]
model = mo.load(model_path, threads=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
for change in (
    lambda: mo.cag.build(model, [document("x.md", "long " * 100)], path),
    lambda: mo.cag.add(path, model, [document("x.md", "long " * 100)]),
    lambda: mo.cag.update(path, model, [document("a.md", "long " * 100)]),
    lambda: mo.cag.remove(path, model, "b.md"),
):
    try:
        change()
        print("no error", flush=True)
    except mo.IoError as error:
        print(error, flush=True)
"""


def test_a_writer_that_may_not_write_so_much_leaves_the_old_file(model: mo.Model, tmp_path: Path):
    path = tmp_path / "a.kv"
    mo.cag.build(model, OLD, path)
    good = path.read_bytes()
    process = start(LIMITED, model.path, path, 20_000)
    output, _ = process.communicate(timeout=120)
    lines = output.splitlines()
    assert len(lines) == 4
    for line in lines:
        assert re.search(r"a\.kv.*(too large|free some space)", line), line
    assert path.read_bytes() == good
    assert [p.name for p in tmp_path.iterdir()] == ["a.kv"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no mount: {error}")
    if done.returncode != 0:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(model: mo.Model, small_disk: Path):
    path = small_disk / "a.kv"
    mo.cag.build(model, OLD, path)
    good = path.read_bytes()
    refused = {"before": 0, "while writing": 0}
    succeeded = 0
    added = document("x.md", "long " * 40)
    for pages in range(40):
        (small_disk / "filler").write_bytes(b"")
        free = os.statvfs(small_disk).f_bavail * 4096
        (small_disk / "filler").write_bytes(b"x" * (free - 4096 * pages))
        changes: list[Callable[[], object]] = [
            lambda: mo.cag.add(path, model, added),
            lambda: mo.cag.build(model, [*OLD, added], path),
        ]
        for change in changes:
            try:
                change()
            except mo.IoError as error:
                assert "free some space" in str(error)
                refused["before" if "[cag.build]" in str(error) else "while writing"] += 1
                assert path.read_bytes() == good
            else:
                succeeded += 1
                assert len(mo.cag.open(path, model).documents) == 3
                (small_disk / "filler").unlink()
                path.write_bytes(good)
                (small_disk / "filler").write_bytes(b"x" * (free - 4096 * pages))
            assert sorted(p.name for p in small_disk.iterdir()) == ["a.kv", "filler"]
    assert min(refused.values()) > 0 and succeeded > 0, (refused, succeeded)


WRITER = """
model_path, path, own, count = sys.argv[1:]
model = mo.load(model_path, threads=1)
print("ready", flush=True)
sys.stdin.readline()
for i in range(int(count)):
    for name in (f"{own}-{i}.md", f"same-{i}.md"):
        try:
            mo.cag.add(path, model, document(name, f"By {own}: {i}\\n"))
            print("added", name, flush=True)
        except mo.IoError:
            print("changed", name, flush=True)
        except mo.InvalidArgument:
            print("known", name, flush=True)
"""


def test_of_two_writers_no_document_is_lost_that_was_reported_as_added(tmp_path: Path):
    model = mo.load(write_tiny_model(tmp_path / "m", context=1 << 16), threads=1)
    path = tmp_path / "a.kv"
    mo.cag.build(model, OLD, path, layout="blocks")
    writers = [start(WRITER, model.path, path, own, 40) for own in "xy"]
    for writer in writers:
        assert line_of(writer) == "ready"
    for writer in writers:
        tell(writer, "go")
    told = [[line.split() for line in w.communicate(timeout=60)[0].splitlines()] for w in writers]
    assert [w.returncode for w in writers] == [0, 0]
    texts = {d.name: d.text for d in mo.cag.open(path, model).documents}
    added = [
        (own, name) for own, lines in zip("xy", told, strict=True) for what, name in lines if what == "added"
    ]
    assert len(added) == len({name for _, name in added}), "both were told that they added the same name"
    for own, name in added:
        assert texts.pop(name).startswith(f"By {own}: "), name
    assert set(texts) == {"a.md", "b.md"}, "a document is there that nobody was told of"
    assert any(what == "changed" for lines in told for what, _ in lines), "they never met"
    assert len(added) >= 40
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.kv", "m"]


READER = """
model_path, path, other = sys.argv[1:]
model = mo.load(model_path, threads=2)
def answers(knowledge):
    answer = knowledge.ask("What?", max_new_tokens=6)
    return answer.ids, answer.log_probabilities
def refused(use):
    try:
        use()
    except mo.Corrupt:
        return
    raise AssertionError("an answer from a file that was cut")
def cut(*_):
    os.truncate(path, 4096)

knowledge = mo.cag.open(path, model)
before = answers(knowledge)
os.replace(other, path)
assert answers(knowledge) == before  # it keeps the file that it opened
assert answers(mo.cag.open(path, model)) != before

data = open(path, "rb").read()
for asked_before in (False, True):
    open(path, "wb").write(data)
    knowledge = mo.cag.open(path, model)
    session = knowledge.session()
    if asked_before:
        answers(knowledge)
        session.ask("What?", max_new_tokens=2)
    cut()
    refused(lambda: knowledge.ask("What?", max_new_tokens=2))
    refused(lambda: knowledge.ask_many(["What?", "Why?"], max_new_tokens=2))
    refused(lambda: session.ask("Why?", max_new_tokens=2))
    refused(knowledge.branch)
open(path, "wb").write(data)
knowledge = mo.cag.open(path, model)
refused(lambda: knowledge.ask("What?", max_new_tokens=6, stream=cut))
open(path, "wb").write(data)
answers(mo.cag.open(path, model))
print("alive", flush=True)
"""


@pytest.mark.parametrize(("layout", "kv"), [("joint", "wide"), ("joint", "int8"), ("blocks", "int4")])
def test_a_reader_survives_a_file_that_is_replaced_or_cut(
    layout: str, kv: str, model: mo.Model, tmp_path: Path
):
    for name, documents in (("a.kv", OLD), ("b.kv", NEW)):
        mo.cag.build(model, documents, tmp_path / name, layout=layout, kv=kv)
    process = start(READER, model.path, tmp_path / "a.kv", tmp_path / "b.kv")
    output, _ = process.communicate(timeout=120)
    assert (process.returncode, output) == (0, "alive\n")


SHARER = """
model_path, path = sys.argv[1:]
model = mo.load(model_path, threads=1)
def anonymous():
    return int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1]) << 10
model.generate("What?", max_new_tokens=4)
before = anonymous()
knowledge = mo.cag.open(path, model)
knowledge.ask("What of 3?", max_new_tokens=4)
print(anonymous() - before, flush=True)
sys.stdin.readline()
"""


def mapping_of(process: int, path: Path) -> dict[str, int]:
    """Bytes by kind, of all mappings of a file in a process."""
    sums = dict.fromkeys(("Rss", "Pss", "Private_Clean", "Private_Dirty"), 0)
    within = False
    for line in Path(f"/proc/{process}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            within = line.endswith(f" {path}")
        elif within and (name := line.split(":")[0]) in sums:
            sums[name] += int(line.split()[1]) << 10
    return sums


def test_eight_processes_share_one_copy_of_a_cache(tmp_path: Path):
    if not Path("/proc/self/smaps").exists():
        pytest.skip("no /proc")
    folder = write_tiny_model(tmp_path / "m", context=2048, kv_heads=4, head_dim=256)  # 16 KiB a token
    path = tmp_path / "a.kv"
    texts = [f"Number {i} is " + "word " * 180 + "\n" for i in range(7)]
    documents = [document(f"{i}.md", text) for i, text in enumerate(texts)]
    mo.cag.build(mo.load(folder), documents, path, layout="blocks", overflow="select", recompute=0)
    size = path.stat().st_size
    assert size > 100e6
    processes = [start(SHARER, folder, path) for _ in range(8)]
    try:
        grown = [int(line_of(process)) for process in processes]
        maps = [mapping_of(process.pid, path) for process in processes]
    finally:
        end(*processes)
    assert all(m["Rss"] >= 0.99 * size for m in maps), "not all of it was read"
    assert all(m["Private_Clean"] + m["Private_Dirty"] == 0 for m in maps)
    assert sum(m["Pss"] for m in maps) < 1.02 * size
    assert max(grown) < 0.02 * size
