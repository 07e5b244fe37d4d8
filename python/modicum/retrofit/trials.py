"""Short real runs, and the survey of a model's errors: what a planner measures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from modicum import _core
from modicum._core import InvalidArgument
from modicum.calibration import Calibration
from modicum.compare import compare
from modicum.model import Model, Progress
from modicum.retrofit.candidates import Space
from modicum.retrofit.loss_model import Trial
from modicum.retrofit.plan import Plan
from modicum.retrofit.speed import tell
from modicum.solver import open_solver

__all__ = ["Trials", "survey"]

_FITTED = 8  # sequences that are fitted on for each that chooses dampings


class Trials:
    """Carries plans out with little text and compares what comes out with the source, on held-out text.

    Parameters
    ----------
    tokens : of calibration; a half as many held-out ones are compared.
    scratch : where models are made, to be removed at once; None means the system's folder for such.
    """

    def __init__(
        self,
        model: Model,
        calibration: Calibration,
        *,
        tokens: int,
        threads: int | None = None,
        scratch: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.model, self.threads, self.scratch, self.progress = model, threads, scratch, progress
        self.done = 0
        open_solver()
        if tokens < 1:
            raise InvalidArgument(f"[plan] trial_tokens: expected at least 1, got {tokens}")
        if len(calibration.sequences) < 2:
            raise InvalidArgument("[plan] calibration: expected at least 2 sequences, got 1")
        length = calibration.length
        # A fit of n inputs needs more rows than n, those aside that choose its damping.
        config = model.config
        inputs = max(config.intermediate_size, config.num_attention_heads * config.head_dim)
        fitted = max(-(-tokens // length), -(-5 * inputs // (4 * length)))
        count = min(max(fitted + -(-fitted // _FITTED), 2), len(calibration.sequences))
        self.sequences = calibration.sequences[:count]
        self.aside = max(1, count // (_FITTED + 1))
        self.held_out = calibration.held_out[: max(1, round(tokens / 2 / length))]

    def __call__(self, plan: Plan) -> Trial:
        with self.made(plan) as (out, report):
            student = Model(out, threads=self.threads)
            comparison = compare(self.model, student, self.held_out, progress=self._go_on)
        self.done += 1
        tell(self.progress, "trials", self.done, self.done)
        return Trial(
            plan=plan,
            kl=comparison.kl,
            kl_standard_error=comparison.kl_standard_error,
            bytes=report["bytes_after"],
            perplexity_ratio=comparison.perplexity_ratio,
            top1_agreement=comparison.top1_agreement,
        )

    @contextmanager
    def made(self, plan: Plan) -> Iterator[tuple[Path, dict[str, Any]]]:
        """The model that the plan makes, which goes when the block ends, and what the run reported."""
        self._go_on()
        with TemporaryDirectory(prefix="modicum-trial-", dir=self.scratch) as folder:
            out = Path(folder) / "model"
            report = _core.retrofit_run(
                self.model.path,
                out,
                plan.to_json(),
                self.sequences,
                held_out=self.aside,
                relative=True,
                work="",
                threads=self.threads or 0,
                progress=self._go_on,
            )
            yield out, report

    def _go_on(self, *_: object) -> None:
        """Long work within a trial reports as the trial, and stops with it."""
        tell(self.progress, "trials", self.done, self.done + 1)


def survey(
    model: Model,
    calibration: Calibration,
    space: Space,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Errors of each layer's edits by amount, from one pass over all of the calibration text."""
    open_solver()
    tokens = np.concatenate([calibration.sequences, calibration.held_out])
    found: dict[str, Any] = _core.retrofit_survey(
        model.path,
        tokens,
        held_out=len(calibration.held_out),
        widths=space.surveyed_widths,
        kv_heads=space.kv_heads,
        bits=[8, 4] if space.bits else [],
        threads=threads or 0,
        progress=progress,
    )
    return found
