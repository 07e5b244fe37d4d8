"""What a planner found: a plan or the advice not to have one, and everything that it was weighed against."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from modicum.retrofit.candidates import Candidate
from modicum.retrofit.loss_model import KV_INT8_KL, Trial
from modicum.retrofit.pictures import Point, frontier_svg
from modicum.retrofit.plan import Plan
from modicum.retrofit.report import plain, size
from modicum.retrofit.targets import Target

__all__ = ["Considered", "Planned"]


@dataclass(frozen=True)
class Considered:
    """A candidate, what it is expected to be, and what a trial showed.

    Attributes
    ----------
    bytes : of all weights on disk.
    kv_bytes_per_token : in bf16, or int8 where the candidate keeps them so.
    tokens_per_second : of writing; None where speed was not asked for.
    kl : that is predicted.
    verdict : "chosen", or why it was not.
    """

    candidate: Candidate
    bytes: int
    kv_bytes_per_token: int
    tokens_per_second: float | None
    kl: float
    trial: Trial | None = None
    verdict: str = ""

    @property
    def loss(self) -> float:
        """The KL that a trial measured, and else the predicted one."""
        if self.trial is None:
            return self.kl
        return self.trial.kl + (KV_INT8_KL if self.candidate.kv_int8 else 0.0)

    @property
    def standard_error(self) -> float:
        return (self.trial.kl_standard_error if self.trial else None) or 0.0

    def point(self) -> Point:
        """As a report's picture shows it."""
        return Point(
            name=str(self.candidate),
            bytes=self.bytes,
            loss=self.loss,
            kv_bytes_per_token=self.kv_bytes_per_token,
            tokens_per_second=self.tokens_per_second,
            chosen=self.verdict == "chosen",
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        trial = self.trial
        return {
            "plan": self.candidate.plan.to_dict(),
            "kv_int8": self.candidate.kv_int8,
            "retrofit": self.candidate.retrofit,
            "bytes": self.bytes,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "tokens_per_second": self.tokens_per_second,
            "kl_predicted": self.kl,
            "kl_measured": trial.kl if trial else None,
            "kl_standard_error": trial.kl_standard_error if trial else None,
            "perplexity_ratio": trial.perplexity_ratio if trial else None,
            "top1_agreement": trial.top1_agreement if trial else None,
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class Planned:
    """What to do to meet a target with the least loss.

    Attributes
    ----------
    plan : to hand to a run; it only quantises where that loses less than any change of shapes. None: the
        checkpoint is best left as it is, and `advice` says what to do instead.
    kv_int8 : whether the target is met only if keys and values are kept as int8 by what serves the model.
    frontier : candidates that no other beats, and those that were measured or are told about.
    advice : in plain words, with the numbers that it rests on.
    predicted : "bytes", "kv_bytes_per_token", "tokens_per_second" (None where not asked for) and "kl" of what
        was chosen.
    chosen : the same with what its trial measured.
    considered : what was weighed by name, the chosen one first.
    trials : all short runs that the predictions rest on.
    losses : the fitted curves, as JSON holds them.
    """

    source: str
    target: Target
    plan: Plan | None
    kv_int8: bool
    frontier: list[Point]
    advice: str
    predicted: dict[str, Any]
    chosen: Considered
    considered: list[Considered]
    trials: list[Trial] = field(default_factory=list)
    losses: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        trials = [vars(trial) | {"plan": trial.plan.to_dict()} for trial in self.trials]
        facts = {
            "schema": "modicum.retrofit.planned/1",
            "source": self.source,
            "target": self.target.to_dict(),
            "plan": self.plan.to_dict() if self.plan is not None else None,
            "kv_int8": self.kv_int8,
            "advice": self.advice,
            "predicted": self.predicted,
            "chosen": self.chosen.to_dict(),
            "considered": [one.to_dict() for one in self.considered],
            "frontier": self.frontier,
            "trials": trials,
            "losses": self.losses,
        }
        return {name: plain(value) for name, value in facts.items()}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def table(self) -> str:
        """Candidates by name, a line each."""
        rows = [_HEADERS, *(_row(one) for one in self.considered)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADERS))]
        last = len(_HEADERS) - 1
        return "\n".join(
            "  ".join(
                cell.ljust(width) if i in (0, last) else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        )

    def __str__(self) -> str:
        return f"target: {self.target}\n{self.advice}\n\n{self.table()}"

    def _repr_html_(self) -> str:
        cells = "".join(f"<th>{html.escape(name)}</th>" for name in _HEADERS)
        rows = [f"<tr>{cells}</tr>"]
        for one in self.considered:
            mark = ' style="font-weight:600"' if one is self.chosen else ""
            cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in _row(one))
            rows.append(f"<tr{mark}>{cells}</tr>")
        return (
            f"<div><p><b>Target: {html.escape(str(self.target))}</b></p><p>{html.escape(self.advice)}</p>"
            f"{frontier_svg(self.frontier)}<table>{''.join(rows)}</table></div>"
        )


_HEADERS = ("candidate", "MB", "KV B/token", "tokens/s", "KL predicted", "KL measured", "verdict")


def _row(one: Considered) -> tuple[str, ...]:
    speed, trial = one.tokens_per_second, one.trial
    error = f" ± {trial.kl_standard_error:.1g}" if trial and trial.kl_standard_error is not None else ""
    return (
        str(one.candidate),
        f"{one.bytes / 1e6:.3f}",
        str(one.kv_bytes_per_token),
        "-" if speed is None else f"{speed:.4g}",
        f"{one.kl:.3g}",
        f"{one.loss:.3g}{error}" if trial else "-",
        one.verdict,
    )


def advice(target: Target, chosen: Considered, source: Considered, others: Sequence[Considered]) -> str:
    """What to do and why; `others` meet the target as well, or would but for their loss."""
    retrofits = [one for one in others if one.candidate.retrofit]
    if chosen.candidate.kv_int8 and not chosen.candidate.retrofit:  # on top of it none could lose less
        retrofits = [one for one in retrofits if not one.candidate.kv_int8]
    rival = min(retrofits, key=lambda c: c.bytes if target.only_kl else c.loss, default=None)
    plain_ones = [one for one in others if not one.candidate.retrofit and one.candidate != source.candidate]
    if chosen.candidate == source.candidate:
        if target.only_kl:
            return (
                f"Leave the model as it is: nothing smaller was found within a KL of {target.max_kl:.3g}."
                + (f" The nearest: {_told(rival)}." if rival else "")
            )
        return f"There is nothing to do: the model as it is meets the target, with {_size(source, target)}."
    if not chosen.candidate.retrofit:
        return _no_retrofit(target, chosen, rival)
    words = f"Retrofit: {_told(chosen)}, from {_size(source, target)}."
    if plain_ones:
        best = min(plain_ones, key=lambda c: c.bytes if target.only_kl else c.loss)
        words += f" Without a change of shapes the best is {_told(best)}."
    else:
        words += " No quantisation of the model as it is meets the target."
    if chosen.candidate.kv_int8:
        words += (
            " This counts on an engine that keeps keys and values as int8, whose own KL is taken as "
            f"{KV_INT8_KL:g} and was not measured here."
        )
    if chosen.trial and chosen.trial.perplexity_ratio is not None and chosen.trial.perplexity_ratio > 1.1:
        words += (
            f" That is a loss to be seen: perplexity rises by {_percent(chosen.trial.perplexity_ratio)}. "
            "Fit it with more text, train it afterwards, or ask for less."
        )
    return words


def _no_retrofit(target: Target, chosen: Considered, rival: Considered | None) -> str:
    if chosen.candidate.plan:
        words = f"Do not retrofit: quantisation alone meets the target. {_told(chosen)}."
        if chosen.candidate.kv_int8:
            words += f" Keys and values are to be kept as int8 too, at a KL taken as {KV_INT8_KL:g}."
    else:
        words = (
            "Do not retrofit: keep keys and values as int8 where the model is served. That halves the cache "
            f"to {chosen.kv_bytes_per_token} bytes a token and leaves the weights alone, at a KL of about "
            f"{KV_INT8_KL:g}: what int8 caches show elsewhere, not measured on this model."
        )
    if rival is None:
        return words + " No retrofit that was considered meets the target."
    if target.only_kl:
        return words + f" The smallest retrofit within it: {_told(rival)}."
    times = rival.loss / chosen.loss if chosen.loss > 0 else float("inf")
    more = f", {times:.3g} times as much" if 1.05 < times < 1e6 else ""
    return words + f" The best retrofit that meets it loses more: {_told(rival)}{more}."


def _told(one: Considered) -> str:
    """Its name with size and loss."""
    kind = "measured" if one.trial else "predicted"
    words = f"{one.candidate} ({one.bytes / 1e6:.4g} MB, {one.kv_bytes_per_token} bytes of KV a token"
    if one.tokens_per_second is not None:
        words += f", {one.tokens_per_second:.4g} tokens/s predicted"
    words += f") with a {kind} KL of {one.loss:.3g}"
    trial = one.trial
    if trial and trial.perplexity_ratio is not None and trial.top1_agreement is not None:
        words += (
            f", perplexity {_percent(trial.perplexity_ratio)}, "
            f"the same likeliest token for {100 * trial.top1_agreement:.1f} %"
        )
    return words


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.2g} %"


def _size(one: Considered, target: Target) -> str:
    parts = [size(one.bytes)]
    if target.kv_bytes_per_token is not None:
        parts.append(f"{one.kv_bytes_per_token} bytes of KV a token")
    if one.tokens_per_second is not None:
        parts.append(f"{one.tokens_per_second:.4g} tokens/s predicted")
    return ", ".join(parts)
