"""A fine-tuned model's update without what would change its manners, where there is no base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from modicum import _core
from modicum._core import InvalidArgument
from modicum.model import Model, Progress, load
from modicum.solver import open_solver
from modicum.tune.guard_set import GuardSet
from modicum.tune.merge import at_least_one

__all__ = ["ProjectReport", "ProjectedModule", "conversations", "project"]


@dataclass(frozen=True)
class ProjectedModule:
    """What was taken out of one linear layer's update ΔW.

    Attributes
    ----------
    directions : of its `inputs`, that are protected.
    kept : ‖ΔW P‖ / ‖ΔW‖ (Frobenius).
    before, after : ‖ΔW x‖ / ‖W x‖ on protected text without and with the projection.
    """

    module: str
    inputs: int
    directions: int
    kept: float
    before: float
    after: float


@dataclass(frozen=True)
class ProjectReport:
    """What a projection did; in project.json of the result too.

    Attributes
    ----------
    tokens : of the protected conversations.
    bytes : of all tensors of the result.
    """

    out: str
    modules: list[ProjectedModule] = field(repr=False)
    tokens: int
    bytes: int
    seconds: float

    @property
    def kept(self) -> float:
        """Share of the update that is left, the mean over linear layers."""
        return float(np.mean([module.kept for module in self.modules])) if self.modules else 1.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"schema": "modicum.tune.projected/1", **asdict(self), "kept": self.kept}

    def __str__(self) -> str:
        def mean(name: str) -> float:
            return float(np.mean([getattr(module, name) for module in self.modules])) if self.modules else 0.0

        return (
            f"{len(self.modules)} linear layers, {self.tokens} protected tokens: {self.kept:.1%} of "
            f"the update left; outputs on protected text change by {mean('after'):.2%} (without projection "
            f"{mean('before'):.2%})\n{self.bytes / 1e6:,.1f} MB in {self.seconds:.1f} s: {self.out}"
        )


def conversations(model: Model, checks: GuardSet) -> list[list[int]]:
    """The exchanges of a set as an instruct model has them: prompts, wanted replies, ends of turn."""
    found = []
    ends = model.config.eos_token_ids[:1]
    pairs = [(entry.system, entry.prompt, entry.wanted[0]) for entry in (*checks.refusals, *checks.formats)]
    pairs += [(entry.system, entry.prompt, entry.answer) for entry in checks.replies]
    for system, prompt, answer in pairs:
        before = [{"role": "system", "content": system}] if system else []
        ids = model.chat_prompt([*before, {"role": "user", "content": prompt}])
        found.append([*ids, *model.tokenizer.encode(answer, add_special_tokens=False), *ends])
    return found


def project(
    instruct: str | Path,
    tuned: str | Path,
    out: str | Path,
    *,
    protect: GuardSet | Sequence[Sequence[int]] | None = None,
    energy: float = 0.99,
    others: bool = True,
    adapter: str | Path | None = None,
    threads: int | None = None,
    work: str | Path | None = None,
    shard_bytes: int | None = None,
    sync_bytes: int = 512 << 20,
    progress: Progress | None = None,
) -> ProjectReport:
    """Writes W + (W_tuned − W) P: the part of an update that the instruct model's conversations do not see.

    For each linear layer, P leaves out the directions that its inputs take in protected conversations, as the
    instruct model has them: the leading eigenvectors of their second moments. In closed form, and without the
    base that a Chat Vector needs. Experimental: measure with a :class:`modicum.tune.Guard` what it is worth
    on your model, beside the plain alternative, an interpolation towards the instruct model
    (``mo.merge`` with `alpha` below 1).

    Parameters
    ----------
    instruct, tuned : the model whose manners are to stay, and what was tuned from it. With an `adapter`, that
        of `instruct`, `tuned` is `instruct` too.
    protect : conversations: a set (its prompts with wanted replies), or token ids of whole conversations;
        None: the set that comes with modicum.
    energy : the share of the activations' energy whose directions are protected.
    others : whether changes of norms, biases, embedding and head come along; nothing projects these.

    Raises
    ------
    InvalidArgument, FormatError, Unsupported, IoError, Cancelled
        As :func:`modicum.merge` does.
    ContextOverflow
        For conversations beyond the context.
    """
    at_least_one("project", threads=threads, shard_bytes=shard_bytes)
    open_solver()
    if protect is None or isinstance(protect, GuardSet):
        sequences = conversations(load(instruct, threads=threads), protect or GuardSet.default())
    else:
        sequences = [list(map(int, ids)) for ids in protect]
    if not sequences or min(map(len, sequences)) < 2:
        raise InvalidArgument(
            "[project] protect: expected conversations of at least two tokens, got shorter ones"
        )
    largest = np.iinfo(np.int32).max
    if worst := [i for ids in sequences for i in ids if not 0 <= i <= largest]:
        raise InvalidArgument(f"[project] token: expected 0 to {largest}, got {worst[0]}")
    length = max(map(len, sequences))
    tokens = np.array([ids + [0] * (length - len(ids)) for ids in sequences], np.int32)
    facts = _core.project(
        str(instruct),
        str(tuned),
        str(adapter or ""),
        tokens,
        [len(ids) for ids in sequences],
        out,
        energy=energy,
        others=others,
        work=work or "",
        shard_bytes=shard_bytes or 0,
        sync_bytes=sync_bytes,
        threads=threads or 0,
        progress=progress,
    )
    facts["modules"] = [ProjectedModule(**module) for module in facts["modules"]]
    return ProjectReport(out=str(out), **facts)
