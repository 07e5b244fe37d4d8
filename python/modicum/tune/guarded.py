"""Merging under a guard: the strongest difference that leaves a model its manners."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from modicum._core import InvalidArgument, IoError
from modicum.model import Progress
from modicum.tune.guard import Guard, GuardError, GuardReport, Trial, Watch
from modicum.tune.merge import MergeReport, merge_plainly
from modicum.tune.plan import MergePlan, as_plan

__all__ = ["merge"]

_FINEST = 16  # parts of the whole strength that are tried before nothing is found
_TOLERANCE = 0.02  # of the whole strength, to which bisection goes


def merge(
    plan: MergePlan | Mapping[str, Any] | str | Path,
    out: str | Path,
    *,
    guard: Guard | None = None,
    alpha: float | None = None,
    search: bool = True,
    threads: int | None = None,
    work: str | Path | None = None,
    shard_bytes: int | None = None,
    progress: Progress | None = None,
) -> MergeReport:
    """Merges the models of a plan into the new directory `out`.

    Tensor by tensor from the mapped files, in f32 with one rounding at the end; private memory does not grow
    with the models. `out` appears whole or not at all, with merge.json in it; a merge that was killed goes on
    where it was when it is asked again, to the same bytes.

    Parameters
    ----------
    plan : a :class:`modicum.tune.MergePlan` (see :func:`modicum.tune.chat_vector`), its dict, mergekit's
        configuration, or the path of a YAML or JSON file of either.
    guard : what the result must still do. A result that does not is not written: with `search`, the largest
        strength up to the plan's that stays within the guard is found by bisection; where there is none,
        GuardError is raised.
    alpha : factor of all differences (of slerp: `t`); None: the plan's own.
    search : whether weaker merges are tried where the plan's is too strong.
    threads : None means every processor that this process may use.
    work : folder for what is unfinished, on the file system of `out`; None: beside it.
    shard_bytes : of each file of weights; None: as in the model that is built upon.
    progress : called with (stage, done, in all); returning False stops.

    Raises
    ------
    InvalidArgument
        For plans that do not fit the models or each other, vocabularies that differ without a rule (listing
        the tokens), and where `out` holds something already.
    FormatError
        For missing tensors, other shapes and numbers that are not finite, by name.
    Unsupported
        For quantised models, and methods that there are not.
    GuardError, IoError, Cancelled
    """
    whole = as_plan(plan)
    if alpha is not None:
        whole = whole.at(alpha)
    options: dict[str, Any] = {"threads": threads, "shard_bytes": shard_bytes, "progress": progress}
    if guard is None:
        return merge_plainly(whole, out, work=work, **options)
    path = Path(out).absolute()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InvalidArgument(
            f"[merge] {str(out)!r}: expected no such directory yet, or an empty one, got one that holds "
            "something; choose another path, or remove what is there first"
        )
    reference = guard.reference or whole.chat
    if reference is None:
        raise InvalidArgument("[guard] reference: expected an instruct model to compare with, got none")
    with _trials_beside(path, work) as folder:
        watch = Watch(guard, reference, whole.foundation, threads=threads, progress=progress)

        def attempt(strength: float | None) -> tuple[MergeReport, GuardReport]:
            to = folder / f"{strength}"
            merged = merge_plainly(whole if strength is None else whole.at(strength), to, **options)
            return merged, watch.judge(to, strength)

        merged, verdict = _search(whole, attempt, search)
        verdict.save(Path(merged.out) / "guard.json")
        _move(Path(merged.out), path)
    return replace(merged, out=str(out), guard=verdict)


def _strength(plan: MergePlan) -> float | None:
    """The plan's own, where it is one number that can be lowered."""
    value = plan.t if plan.method == "slerp" else plan.lambda_
    if plan.method == "linear" or not isinstance(value, int | float) or value <= 0:
        return None
    return float(value)


def _search(
    plan: MergePlan, attempt: Callable[[float | None], tuple[MergeReport, GuardReport]], search: bool
) -> tuple[MergeReport, GuardReport]:
    """The merge with the largest strength that passes, as far as a grid and bisection find it."""
    trials: list[Trial] = []
    most = _strength(plan)

    def tried(strength: float | None) -> tuple[MergeReport, GuardReport]:
        merged, verdict = attempt(strength)
        failed = [check.name for check in verdict.checks if check.passed is False]
        trials.append(Trial(1.0 if strength is None else strength, verdict.passed, failed))
        if not verdict.passed:
            shutil.rmtree(merged.out)
        return merged, replace(verdict, trials=list(trials))

    best = tried(most)
    if best[1].passed:
        return best
    if most is None or not search:
        raise GuardError(best[1])
    nearest = best[1]
    for share in _shares():
        best = tried(share * most)
        if best[1].passed:
            break
        nearest = min(nearest, best[1], key=lambda verdict: len(verdict.trials[-1].failed))
    else:
        raise GuardError(replace(nearest, trials=list(trials)))
    below, above = share * most, min(t.alpha for t in trials if t.alpha > share * most)
    while above - below > _TOLERANCE * most:
        middle = (above + below) / 2
        found = tried(middle)
        if found[1].passed:
            shutil.rmtree(best[0].out)
            best, below = found, middle
        else:
            above = middle
    return best[0], replace(best[1], trials=list(trials))


def _shares() -> Iterator[float]:
    """1/2; 3/4, 1/4; 7/8, 5/8, …: ever finer, the strongest first.

    What passes need not begin at 0: too little of a Chat Vector gives no manners, too much takes knowledge.
    """
    parts = 2
    while parts <= _FINEST:
        yield from (odd / parts for odd in range(parts - 1, 0, -2))
        parts *= 2


@contextmanager
def _trials_beside(path: Path, work: str | Path | None) -> Iterator[Path]:
    """A hidden folder for what is tried, gone afterwards; what a killed search left is removed first."""
    folder = (Path(work) if work else path.parent) / f".{path.name}.guard"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise IoError(f"[merge] making {str(folder)!r}, failed: {error.strerror}") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InvalidArgument(
                f"[merge] {str(path)!r}: expected an output that nobody else writes, got another process "
                "at work on it; wait for that one"
            ) from None
        for left in folder.iterdir():
            if left.name != "lock":
                shutil.rmtree(left)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _move(found: Path, to: Path) -> None:
    try:
        found.rename(to)
    except OSError as error:
        raise IoError(f"[merge] renaming the result to {str(to)!r}, failed: {error.strerror}") from None
