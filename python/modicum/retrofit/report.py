"""What a retrofit did, what it lost and what was not looked at: as HTML, text and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from modicum._core import FormatError, IoError
from modicum.compare import Comparison
from modicum.retrofit.pictures import Point
from modicum.retrofit.probes import Probe, Probes, Score

__all__ = ["EditError", "KindBytes", "Protocol", "Report"]

SCHEMA = "modicum.retrofit.report/1"


@dataclass(frozen=True)
class Protocol:
    """How losses were measured, without which a perplexity cannot be compared with anybody's.

    Attributes
    ----------
    texts : name and hash of each text, as ``{"name": …, "sha256": …}``.
    bos : whether each sequence begins with the BOS token.
    """

    sequence_length: int
    tokens: int
    texts: list[dict[str, str]]
    bos: bool


@dataclass(frozen=True)
class EditError:
    """What one edit changed of one module's output: shares of the output's energy that are not reproduced.

    Attributes
    ----------
    layer : of the source.
    edit : "ffn", "kv", "window", "depth", "quantize", "low_rank"; "refit", what makes up for integers before.
    module : "mlp.down_proj", …
    before, after : Σ w ‖t − t'‖² ÷ Σ w ‖t‖² on calibration text, without and with compensation.
    held_out_before, held_out_after : the same on text that the fit did not see.
    damping : of the fit, relative to the mean of the Gram matrix's diagonal.
    condition : number of the system that was solved.
    """

    layer: int
    edit: str
    module: str = ""
    before: float | None = None
    after: float | None = None
    held_out_before: float | None = None
    held_out_after: float | None = None
    damping: float | None = None
    condition: float | None = None


@dataclass(frozen=True)
class KindBytes:
    """Bytes of all tensors of one kind."""

    kind: str
    before: int
    after: int


@dataclass
class Report:
    """Everything about one run of a retrofit. What was not measured is None or empty, never 0.

    Attributes
    ----------
    calibration : as the calibration describes itself.
    held_out : on held-out text of the calibration's kind.
    second : on a text of another kind, called `second_name`.
    speed_before, speed_after : as :meth:`Speed.to_dict` has them, measured in the same rounds.
    speed_predicted : tokens a second by the plan: "decode" and "prefill".
    frontier : candidates that the plan chose from.
    not_checked : what a reader may expect and nobody looked at ("answers in other languages").
    """

    source: str
    out: str
    plan: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    protocol: Protocol | None = None
    held_out: Comparison | None = None
    second: Comparison | None = None
    second_name: str = ""
    probes: Probes | None = None
    errors: list[EditError] = field(default_factory=list)
    bytes_by_kind: list[KindBytes] = field(default_factory=list)
    kv_bytes_per_token_before: int | None = None
    kv_bytes_per_token_after: int | None = None
    speed_before: dict[str, Any] | None = None
    speed_after: dict[str, Any] | None = None
    speed_predicted: dict[str, float] | None = None
    seconds_planned: float | None = None
    seconds: float | None = None
    peak_bytes_planned: int | None = None
    peak_bytes: int | None = None
    frontier: list[Point] = field(default_factory=list)
    seeds: dict[str, int] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)

    @property
    def bytes_before(self) -> int:
        return sum(kind.before for kind in self.bytes_by_kind)

    @property
    def bytes_after(self) -> int:
        return sum(kind.after for kind in self.bytes_by_kind)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it. Numbers that are not finite, which JSON has no word for, become None."""
        facts = {"schema": SCHEMA, **{f.name: getattr(self, f.name) for f in fields(self)}}
        return {name: plain(value) for name, value in facts.items()}

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> Report:
        """What `to_dict` wrote. Raises FormatError for another schema, and for fields that do not fit it."""
        if facts.get("schema") != SCHEMA:
            raise FormatError(f"[report] schema: expected {SCHEMA}, got {facts.get('schema')!r}")
        own = {name: value for name, value in facts.items() if name != "schema"}
        parts = {"errors": EditError, "bytes_by_kind": KindBytes, "frontier": Point}
        try:
            for name, kind in parts.items():
                own[name] = [kind(**one) for one in own.get(name, [])]
            if own.get("probes") is not None:
                own["probes"] = _probes(own["probes"])
            if own.get("protocol") is not None:
                own["protocol"] = Protocol(**own["protocol"])
            for name in ("held_out", "second"):
                if own.get(name) is not None:
                    own[name] = Comparison.from_dict(own[name])
            return cls(**own)
        except (AttributeError, KeyError, TypeError) as error:
            raise FormatError(f"[report] fields: expected those of {SCHEMA}, got {error}") from None

    def save(self, path: str | Path) -> None:
        """Writes the report as JSON. Raises IoError."""
        _write(path, json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Reads what `save` wrote. Raises IoError, and FormatError where it is something else."""
        try:
            facts = json.loads(Path(path).read_text("utf-8"))
        except OSError as error:
            raise IoError(f"[report] {path}: {error.strerror}") from None
        except ValueError:
            raise FormatError(f"[report] {path}: expected JSON, got something else") from None
        if not isinstance(facts, dict):
            raise FormatError(f"[report] {path}: expected an object, got {type(facts).__name__}")
        return cls.from_dict(facts)

    def html(self) -> str:
        """A page of its own: no script, nothing loaded from elsewhere."""
        from modicum.retrofit.report_html import page

        return page(self)

    def save_html(self, path: str | Path) -> None:
        """Writes `html()`. Raises IoError."""
        _write(path, self.html())

    def _repr_html_(self) -> str:
        from modicum.retrofit.report_html import body

        return body(self)

    def __repr__(self) -> str:
        return str(self)

    def headline(self) -> list[tuple[str, str, str]]:
        """What matters first, as (name, value, what it was before or how sure it is)."""
        rows: list[tuple[str, str, str]] = []
        if self.held_out is not None:
            rows += _loss_rows(self.held_out)
        if self.bytes_by_kind:
            rows.append(("size", size(self.bytes_after), _from(size(self.bytes_before), self._share())))
        if (kv := self.kv_bytes_per_token_after) is not None:
            before = self.kv_bytes_per_token_before
            share = kv / before if before else None
            rows.append(("cache per token", size(kv), _from(size(before or 0), share)))
        for name, label in (("decode", "writes"), ("prefill", "reads")):
            if self.speed_before is not None and self.speed_after is not None:
                key = f"{name}_tokens_per_second"
                before, after = self.speed_before[key][0], self.speed_after[key][0]
                rows.append((label, f"{after:.3g} tokens/s", f"from {before:.3g}, ×{after / before:.2f}"))
        return rows

    def _share(self) -> float | None:
        return self.bytes_after / self.bytes_before if self.bytes_before else None

    def __str__(self) -> str:
        lines = [f"{self.source} -> {self.out}"]
        lines += [_line(*row) for row in self.headline()]
        if self.held_out is None:
            lines.append("  what was lost was not measured")
        if self.second is not None:
            lines.append(f"  on {self.second_name or 'another text'}:")
            lines += [_line(f"  {name}", value, note) for name, value, note in _loss_rows(self.second)]
        if self.probes is not None and self.probes.results:
            lines.append("  right answers to probes:")
            lines += [_line(f"  {probe.name}", *_probe_cells(probe)) for probe in self.probes.results]
        if self.probes is not None:
            lines += [f"    {name}: not asked: {why}" for name, why in self.probes.refused.items()]
        lines += [f"  warning: {text}" for text in self.warnings]
        lines += [f"  not checked: {text}" for text in self.not_checked]
        return "\n".join(lines)


def _line(name: str, value: str, note: str) -> str:
    return f"  {name:<24}{value:>14}   {note}".rstrip()


def _loss_rows(c: Comparison) -> list[tuple[str, str, str]]:
    change = 100 * (c.perplexity_ratio - 1)
    error = "" if c.kl_standard_error is None else f"± {c.kl_standard_error:.2g} "
    return [
        ("perplexity", f"{c.student.value:.4g}", f"from {c.teacher.value:.4g}, {change:+.1f} %"),
        ("KL from the source", f"{c.kl:.3g}", f"{error}nats a token"),
        ("same likeliest token", f"{100 * c.top1_agreement:.1f} %", f"of {c.student.tokens} tokens"),
    ]


def _probe_cells(probe: Probe) -> tuple[str, str]:
    before, chance = (f"{100 * score.accuracy:.1f} %" for score in (probe.before, probe.chance))
    if not probe.able:
        return "says nothing", f"{before} before is no better than chance, {chance}"
    counts = f"of {probe.items} items {probe.lost} lost, {probe.gained} gained"
    return f"{100 * probe.after.accuracy:.1f} %", f"from {before}, by chance {chance}; {counts}"


def size(count: float) -> str:
    """With a decimal unit: 1234567 is "1.23 MB"."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _probes(facts: dict[str, Any]) -> Probes:
    """What `Probes.to_dict` wrote."""
    results = []
    for one in facts["results"]:
        own = {name: one[name] for name in Probe.__dataclass_fields__}
        results.append(Probe(**own | {name: Score(**own[name]) for name in ("before", "after", "chance")}))
    return Probes(results, dict(facts["refused"]))


def _from(before: str, share: float | None) -> str:
    return f"from {before}" + ("" if share is None else f", {100 * (share - 1):+.0f} %")


def plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, Comparison | Probes):
        return plain(value.to_dict())
    if hasattr(value, "__dataclass_fields__"):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(one) for one in value]
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: str | Path, text: str) -> None:
    try:
        Path(path).write_text(text, "utf-8")
    except OSError as error:
        raise IoError(f"[report] {path}: {error.strerror}") from None
