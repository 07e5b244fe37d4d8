"""A plan carried out: from one Hugging Face directory to another, with a report of what was lost."""

from __future__ import annotations

import hashlib
import importlib.metadata
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from modicum import _core
from modicum._core import InvalidArgument
from modicum.calibration import Calibration
from modicum.compare import compare
from modicum.model import Progress, load
from modicum.progress import duration
from modicum.retrofit import probes as probing
from modicum.retrofit.plan import Plan, as_plan
from modicum.retrofit.report import EditError, KindBytes, Protocol, Report
from modicum.retrofit.speed import measure
from modicum.solver import open_solver

__all__ = ["Estimate", "estimate", "report", "run"]

_NOT_CHECKED = [
    "answers in languages and on subjects that the texts do not have",
    "long contexts: texts were read in sequences of the length stated",
    "refusals, tone and other manners of the original",
]
_REPORT_ROWS = 16384  # tokens of a text that a report reads with both models


@dataclass(frozen=True)
class Estimate:
    """What a run needs, stated before it begins.

    Attributes
    ----------
    in_bytes, out_bytes : of all weights of the source and of the result.
    kv_bytes_per_token_before, kv_bytes_per_token_after : of keys and values in all layers, in bf16.
    memory_bytes : private memory at most, beside the mapped checkpoint.
    disk_bytes : of temporary files beside the output, until the end.
    seconds : of the fits, without the comparison afterwards; from the speed of this machine's products,
        measured just now, and within a factor of two.
    """

    in_bytes: int
    out_bytes: int
    kv_bytes_per_token_before: int
    kv_bytes_per_token_after: int
    memory_bytes: int
    disk_bytes: int
    seconds: float

    def __str__(self) -> str:
        kv = f"{self.kv_bytes_per_token_before} → {self.kv_bytes_per_token_after} bytes"
        return "\n".join(
            [
                f"weights     {self.in_bytes / 1e6:,.1f} → {self.out_bytes / 1e6:,.1f} MB",
                f"KV / token  {kv}",
                f"memory      {self.memory_bytes / 1e6:,.0f} MB beside the mapped weights",
                f"disk        {self.disk_bytes / 1e6:,.0f} MB until the end, beside the output",
                f"time        about {duration(self.seconds)}",
            ]
        )


def _tokens(plan: Plan, calibration: Calibration | None) -> tuple[npt.NDArray[np.int32], int]:
    """All sequences, and how many of them, the last, are held out."""
    if calibration is None:
        if plan.needs_text:
            raise InvalidArgument(
                f"[retrofit] calibration: expected text to fit “{plan}” on, got none; give text of the kind "
                "that the model is used for"
            )
        return np.zeros((0, 1), np.int32), 0
    return np.concatenate([calibration.sequences, calibration.held_out]), len(calibration.held_out)


def _kv_bytes(config: _core.ModelConfig) -> int:
    return 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim


def _rates(dtype: str) -> tuple[float, float]:
    """Multiply-adds a second of whole layers in `dtype` and of solves in f64, measured briefly."""
    limits = _core.machine_limits()
    peak = limits.bf16 if dtype == "bf16" else limits.f32
    n = 768
    matrix = np.eye(n) + 1e-3
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        np.linalg.cholesky(matrix)
        best = min(best, time.perf_counter() - start)
    # Two operations are a multiply-add; whole layers, attention and norms too, reach a quarter of that.
    return peak / 2 / 4, n**3 / 6 / best


def estimate(
    source: str | Path, plan: Plan | dict[str, Any] | str | Path, calibration: Calibration | None = None
) -> Estimate:
    """What :func:`run` would need; raises what it would raise before it begins."""
    open_solver()
    plan = as_plan(plan)
    tokens, held_out = _tokens(plan, calibration)
    facts = _core.retrofit_estimate(source, plan.to_json(), tokens, held_out=held_out)
    model = load(source)
    config = model.config
    products, solves = _rates(model.dtype)
    heads = plan.kv.kv_heads if plan.kv else config.num_key_value_heads
    layers = config.num_hidden_layers - (plan.depth.count if plan.depth else 0)
    return Estimate(
        in_bytes=facts["in_bytes"],
        out_bytes=facts["out_bytes"],
        kv_bytes_per_token_before=_kv_bytes(config),
        kv_bytes_per_token_after=4 * layers * heads * config.head_dim,
        memory_bytes=facts["memory_bytes"],
        disk_bytes=facts["disk_bytes"],
        seconds=facts["pass_operations"] / products + facts["solve_operations"] / solves,
    )


def run(
    source: str | Path,
    out: str | Path,
    plan: Plan | dict[str, Any] | str | Path,
    *,
    calibration: Calibration | None = None,
    threads: int | None = None,
    work: str | Path | None = None,
    evaluate: bool = True,
    second: tuple[str, npt.NDArray[np.int32]] | None = None,
    speed: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Shrinks the model in `source` as `plan` says and writes the directory `out`.

    In closed form, a layer at a time, without gradients through the model: two streams of activations go
    through the layers, that of the original and that of the model as changed so far, and each fit takes the
    second as inputs and the first as targets. `out` is a standard checkpoint that transformers, vLLM and
    llama.cpp's converter read (but for `low_rank`, which is marked in config.json); it appears whole or not
    at all, with retrofit.json and retrofit.html, the report, in it. A run that was killed goes on where it
    was when it is asked again, to the same bytes.

    Parameters
    ----------
    plan : a :class:`Plan`, its dict, or the path of its JSON.
    calibration : text that fits are made on; only plans that need none (rounding to nearest, layers dropped
        without a refit) go without. See :meth:`Calibration.from_text`.
    threads : None means every processor that this process may use.
    work : folder for what is done so far; None: beside `out`.
    evaluate : whether the report compares both models on held-out text and by probes.
    second : name and token ids [sequences, length] of a text of another kind, compared on as well.
    speed : whether both models' speed is measured for the report; takes a while.
    progress : called with (stage, done, in all); returning False stops.

    Raises
    ------
    InvalidArgument
        For a plan that does not fit the model, too little text (telling how much is needed), and where `out`
        holds something already.
    FormatError
        For weights that are not finite, and plans that are none, naming the field.
    Unsupported
        Where `source` is quantised already, and for edits that this architecture cannot have.
    IoError, Cancelled
    """
    plan = as_plan(plan)
    solver = open_solver()
    tokens, held_out = _tokens(plan, calibration)
    with _peak_memory() as memory:
        facts = _core.retrofit_run(
            source,
            out,
            plan.to_json(),
            tokens,
            held_out=held_out,
            relative=True,
            work=work or "",
            threads=threads or 0,
            progress=progress,
        )
    planned = _core.retrofit_estimate(source, plan.to_json(), tokens, held_out=held_out)
    result = report(
        source,
        out,
        calibration=calibration if evaluate else None,
        second=second if evaluate else None,
        probes=evaluate,
        speed=speed,
        threads=threads,
        progress=progress,
    )
    result.plan = plan.to_dict()
    result.calibration = calibration.describe() if calibration else {}
    result.errors = [EditError(**error) for error in facts["errors"]]
    result.seconds = facts["seconds"]
    result.peak_bytes_planned = planned["memory_bytes"]
    result.peak_bytes = memory.peak
    result.seeds = {"calibration": calibration.seed} if calibration else {}
    result.versions["solver"] = solver
    if facts["resumed_layers"]:
        result.warnings.append(f"{facts['resumed_layers']} layers come from a run that was stopped")
    if plan.low_rank:
        result.warnings.append(
            "layers of two factors are no standard form: other engines refuse this directory"
        )
    if not plan:
        result.warnings.append("an empty plan: the files were copied bit for bit")
    result.save(Path(out) / "retrofit.json")
    result.save_html(Path(out) / "retrofit.html")
    return result


def report(
    before: str | Path,
    after: str | Path,
    *,
    calibration: Calibration | None = None,
    second: tuple[str, npt.NDArray[np.int32]] | None = None,
    probes: bool = True,
    speed: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """What the model in `after` lost of the one in `before`; neither need come from here.

    Parameters
    ----------
    calibration : whose held-out sequences are compared on (at most 16,384 tokens of them).
    second : name and token ids int32 [sequences, length] of another text.
    probes : whether copying, a passkey and additions are tried (:mod:`modicum.retrofit.probes`).
    """
    teacher, student = load(before, threads=threads), load(after, threads=threads)
    result = Report(source=str(before), out=str(after), not_checked=list(_NOT_CHECKED))
    result.versions = {"modicum": _version(), "instruction set": _core.active_isa()}
    result.bytes_by_kind = _bytes_by_kind(Path(before), Path(after))
    result.kv_bytes_per_token_before = _kv_bytes(teacher.config)
    result.kv_bytes_per_token_after = _kv_bytes(student.config)
    if calibration is not None:
        text = _some(calibration.held_out)
        result.held_out = compare(teacher, student, text, progress=progress)
        result.protocol = Protocol(
            sequence_length=calibration.length,
            tokens=int(text.size),
            texts=[{"name": s.name, "sha256": s.sha256} for s in calibration.sources],
            bos=bool(calibration.bos),
        )
    else:
        result.not_checked.append("loss and KL: there was no text")
    if second is not None:
        result.second_name, ids = second
        result.second = compare(teacher, student, _some(ids), progress=progress)
        if result.protocol is not None:
            digest = hashlib.sha256(np.ascontiguousarray(ids, "<i4").tobytes()).hexdigest()
            result.protocol.texts.append({"name": result.second_name, "sha256": digest})
    if probes:
        result.probes = probing.run(teacher, student)
    if speed:
        was, now = measure([teacher, student], threads=threads, progress=progress)
        result.speed_before, result.speed_after = was.to_dict(), now.to_dict()
    return result


def _some(ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    if ids.ndim != 2 or ids.shape[1] < 2:
        raise InvalidArgument(f"[report] token ids: expected [sequences, length], got {list(ids.shape)}")
    return ids[: max(1, _REPORT_ROWS // ids.shape[1])]


def _version() -> str:
    try:
        return importlib.metadata.version("modicum")
    except importlib.metadata.PackageNotFoundError:
        return "a source tree"


def _kind(tensor: str) -> str:
    if "embed_tokens" in tensor:
        return "embedding"
    if tensor.startswith("lm_head"):
        return "head"
    return "attention" if "self_attn" in tensor else "feed-forward" if ".mlp." in tensor else "norms"


def _bytes_by_kind(before: Path, after: Path) -> list[KindBytes]:
    sums: dict[str, list[int]] = {}
    for i, folder in enumerate((before, after)):
        for name, size in _core.tensor_bytes(folder).items():
            sums.setdefault(_kind(name), [0, 0])[i] += size
    return [KindBytes(kind, *both) for kind, both in sums.items()]


class _Peak:
    peak: int | None = None


@contextmanager
def _peak_memory() -> Iterator[_Peak]:
    """The most private memory that the process gained, looked at every 20 ms; None where /proc is not."""
    status = Path("/proc/self/status")
    seen = _Peak()
    if not status.exists():
        yield seen
        return

    def held() -> int:
        for line in status.read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) << 10
        return 0

    start, done = held(), threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            seen.peak = max(seen.peak or 0, held() - start)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()
