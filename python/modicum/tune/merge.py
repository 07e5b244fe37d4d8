"""Weights of several models merged into one directory, or into an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from modicum import _core
from modicum._core import InvalidArgument
from modicum.model import Progress
from modicum.solver import open_solver
from modicum.tune.guard import GuardReport
from modicum.tune.plan import Input, MergePlan, as_plan

__all__ = [
    "MergeReport",
    "MergedKind",
    "PatchReport",
    "PatchedModule",
    "extract_lora",
    "merge_lora",
    "write_patch",
]

Others = Literal["save", "drop"]


@dataclass(frozen=True)
class MergedKind:
    """What became of all tensors of one kind, beside the model that is built upon.

    Attributes
    ----------
    kind : "q_proj", …, "embedding", "head" or "others" (norms, biases).
    changed : elements whose value was to change.
    moved : of these, those that are another number as stored.
    relative_change : size of the change, as computed, over that of the weights (root mean squares).
    cosine : between the change as computed and as stored; 1 where rounding lost nothing of its direction.
    """

    kind: str
    tensors: int
    elements: int
    changed: int
    moved: int
    relative_change: float
    cosine: float

    @property
    def moved_share(self) -> float:
        return self.moved / self.changed if self.changed else 1.0


@dataclass(frozen=True)
class MergeReport:
    """What a merge did; the plan and the counts are in merge.json of the result too.

    Attributes
    ----------
    bytes : of all tensors.
    resumed : tensors that an earlier run had finished before it was killed.
    matched : whether rows of embedding and head were matched by token.
    unchecked : whether a model had no tokenizer.json to tell whether they had to be.
    partial_tokens : of the result, that some model lacks.
    dropped_tokens : of some model, that the result lacks.
    added_tokens : that the result's tokenizer was given.
    guard : the verdict on the result; None without a guard.
    """

    plan: MergePlan
    out: str
    kinds: list[MergedKind]
    bytes: int
    tensors: int
    resumed: int
    rows: int
    matched: bool
    unchecked: bool
    partial_tokens: list[str] = field(repr=False)
    dropped_tokens: list[str] = field(repr=False)
    added_tokens: list[str] = field(repr=False)
    seconds: float = 0.0
    guard: GuardReport | None = None

    @property
    def moved_share(self) -> float:
        """Of all elements that were to change, the share that did, as stored."""
        changed = sum(kind.changed for kind in self.kinds)
        return sum(kind.moved for kind in self.kinds) / changed if changed else 1.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        facts = asdict(self)
        facts["plan"] = self.plan.to_dict()
        facts["guard"] = self.guard.to_dict() if self.guard else None
        return {"schema": "modicum.tune.merged/1", **facts, "moved_share": self.moved_share}

    def __str__(self) -> str:
        lines = [
            f"{self.plan}",
            f"{'':<12}{'tensors':>8}{'elements':>14}{'change':>10}{'moved':>9}{'cosine':>9}",
        ]
        for k in self.kinds:
            lines.append(
                f"{k.kind:<12}{k.tensors:>8}{k.elements:>14,}{k.relative_change:>10.2%}{k.moved_share:>9.1%}"
                f"{k.cosine:>9.4f}"
            )
        if self.moved_share < 0.9:
            lines.append(
                f"{1 - self.moved_share:.0%} of the changes are too small for the stored type and were "
                "rounded away; keep them as an adapter (--patch) or ask for another dtype"
            )
        lines += self._vocabulary()
        if self.guard:
            lines += [str(self.guard)]
        if self.resumed:
            lines.append(f"{self.resumed} tensors come from a run that was stopped")
        lines.append(
            f"{self.tensors} tensors, {self.bytes / 1e6:,.1f} MB in {self.seconds:.2f} s: {self.out}"
        )
        return "\n".join(lines)

    def _vocabulary(self) -> list[str]:
        lines = []
        if self.unchecked:
            lines.append(
                "no tokenizer.json in some model: rows of equal number were taken for the same tokens"
            )
        for tokens, words in (
            (self.added_tokens, "added to the vocabulary"),
            (self.partial_tokens, "not in every model"),
            (self.dropped_tokens, "of other models left out"),
        ):
            if tokens:
                some = ", ".join(map(repr, tokens[:6])) + (", …" if len(tokens) > 6 else "")
                lines.append(f"{len(tokens)} tokens {words}: {some}")
        return lines


@dataclass(frozen=True)
class PatchedModule:
    """A linear layer's change ΔW as two factors.

    Attributes
    ----------
    size, relative : ‖ΔW‖ (Frobenius), and over that of the weights.
    errors : ‖ΔW − BA‖ / ‖ΔW‖ with 1, 2, 4, … factors, and at last with `rank`.
    """

    module: str
    rank: int
    size: float
    relative: float
    errors: list[float]


@dataclass(frozen=True)
class PatchReport:
    """What an adapter holds of a change; in patch.json beside it too.

    Attributes
    ----------
    whole : tensors that it holds as they are (PEFT's modules_to_save).
    dropped : tensors whose change is lost.
    bytes : of the adapter.
    """

    out: str
    modules: list[PatchedModule]
    whole: list[str]
    dropped: list[str]
    bytes: int
    seconds: float

    @property
    def error(self) -> float:
        """‖ΔW − BA‖ / ‖ΔW‖ over all linear layers."""
        lost = sum((module.errors[-1] * module.size) ** 2 for module in self.modules)
        size = sum(module.size**2 for module in self.modules)
        return float((lost / size) ** 0.5) if size else 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"schema": "modicum.tune.patch/1", **asdict(self), "error": self.error}

    def __str__(self) -> str:
        ranks = [module.rank for module in self.modules]
        spread = (
            f"{min(ranks)} to {max(ranks)}"
            if ranks and min(ranks) < max(ranks)
            else f"{max(ranks, default=0)}"
        )
        lines = [f"{len(ranks)} linear layers with {spread} factors, {self.error:.2%} of the change lost"]
        for tensors, words in ((self.whole, "kept whole"), (self.dropped, "left out")):
            if tensors:
                some = ", ".join(tensors[:3]) + (", …" if len(tensors) > 3 else "")
                lines.append(f"{len(tensors)} tensors {words}: {some}")
        lines.append(f"{self.bytes / 1e6:,.2f} MB in {self.seconds:.2f} s: {self.out}")
        return "\n".join(lines)


def merge_plainly(
    plan: MergePlan | Mapping[str, Any] | str | Path,
    out: str | Path,
    *,
    threads: int | None = None,
    work: str | Path | None = None,
    shard_bytes: int | None = None,
    sync_bytes: int = 512 << 20,
    progress: Progress | None = None,
) -> MergeReport:
    """:func:`modicum.merge` without a guard."""
    whole = as_plan(plan)
    at_least_one("merge", threads=threads, shard_bytes=shard_bytes)
    facts = _core.merge(
        whole.to_json(),
        out,
        work=work or "",
        shard_bytes=shard_bytes or 0,
        sync_bytes=sync_bytes,
        threads=threads or 0,
        progress=progress,
    )
    facts["kinds"] = [_kind(**kind) for kind in facts["kinds"]]
    return MergeReport(plan=whole, out=str(out), **facts)


def at_least_one(op: str, **counts: int | None) -> None:
    for name, value in counts.items():
        if value is not None and value < 1:
            raise InvalidArgument(f"[{op}] {name}: expected at least 1 or None, got {value}")


def _kind(*, square: float, change: float, stored_change: float, product: float, **counts: Any) -> MergedKind:
    both = (change * stored_change) ** 0.5
    return MergedKind(
        **counts,
        relative_change=(change / square) ** 0.5 if square else 0.0,
        cosine=product / both if both else (0.0 if change else 1.0),
    )


def write_patch(
    plan: MergePlan | Mapping[str, Any] | str | Path,
    out: str | Path,
    *,
    rank: int = 16,
    error: float | None = None,
    dtype: Literal["f32", "bf16", "f16"] = "f32",
    others: Others = "save",
    threads: int | None = None,
    progress: Progress | None = None,
) -> PatchReport:
    """What a merge would change, as a PEFT LoRA adapter in the new directory `out`.

    Small changes survive, which weights of bf16 would round away, and the model that is built upon stays
    as it is: the adapter goes on and off. Each linear layer's change becomes two factors, the best of their
    rank (truncated singular value decomposition, in f64).

    Parameters
    ----------
    rank : of the factors, at most.
    error : smaller ranks where this relative error of a layer's change is met; None: always `rank`.
    others : changes of norms, embedding and head are held whole ("save") or left out and told ("drop").
        Biases have no place in an adapter: with "save" a changed one is refused.

    Raises
    ------
    InvalidArgument, FormatError, IoError, Cancelled
        As :func:`modicum.merge` does.
    Unsupported
        Where the vocabulary or a bias changes.
    """
    if rank < 1:
        raise InvalidArgument(f"[patch] rank: expected at least 1, got {rank}")
    if error is not None and not 0 <= error < 1:
        raise InvalidArgument(f"[patch] error: expected 0 to 1 or None, got {error}")
    if others not in get_args(Others):
        raise InvalidArgument(f"[patch] others: expected save or drop, got {others!r}")
    at_least_one("patch", threads=threads)
    open_solver()
    facts = _core.write_patch(
        as_plan(plan).to_json(),
        out,
        rank=rank,
        error=error or 0.0,
        dtype=dtype,
        keep_others=others == "save",
        threads=threads or 0,
        progress=progress,
    )
    facts["modules"] = [PatchedModule(**module) for module in facts["modules"]]
    return PatchReport(out=str(out), **facts)


def extract_lora(base: str | Path, tuned: str | Path, out: str | Path, **options: Any) -> PatchReport:
    """The difference of a tuned model from its base as a PEFT LoRA adapter of the base.

    `options` are those of :func:`write_patch`.
    """
    return write_patch(MergePlan("task_arithmetic", (Input(tuned),), base=base), out, **options)


def merge_lora(
    model: str | Path, adapter: str | Path, out: str | Path, *, weight: float = 1.0, **options: Any
) -> MergeReport:
    """`model` with `weight` × the adapter's update folded into its weights, in the new directory `out`.

    Computed in f32 with one rounding; the report tells how many weights the update was too small to move.
    `options` are those of :func:`modicum.merge` but for the guard.
    """
    plan = MergePlan("task_arithmetic", (Input(model, weight=weight, adapter=adapter),), base=model)
    return merge_plainly(plan, out, **options)
