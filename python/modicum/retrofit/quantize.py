"""Linear layers rounded to integers, without text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from modicum import _core
from modicum._core import InvalidArgument
from modicum.model import Progress

__all__ = ["QuantizeReport", "QuantizedKind", "quantize"]

Head = Literal["keep", "int8", "int4"]
_HEAD_BITS: dict[str, int | None] = {"keep": None, "int8": 8, "int4": 4}


@dataclass(frozen=True)
class QuantizedKind:
    """What became of all tensors of one kind.

    Attributes
    ----------
    kind : "q_proj", …, "down_proj", "embedding", "head" or "others" (norms, biases).
    rms_error : root mean square of the rounding errors of the weights that became integers; 0 where none did.
    relative_error : that, divided by the root mean square of those weights.
    """

    kind: str
    tensors: int
    bytes_before: int
    bytes_after: int
    rms_error: float
    relative_error: float


@dataclass(frozen=True)
class QuantizeReport:
    """What :func:`quantize` did. Bytes are those of all tensors, scales included.

    Attributes
    ----------
    kept : linear layers that stay in floats, since their columns are no multiple of the group.
    head_choices : bytes of the whole checkpoint with each choice for the head.
    """

    bits: int
    group: int | str
    head: str
    kinds: list[QuantizedKind]
    kept: list[str]
    bytes_before: int
    bytes_after: int
    head_choices: dict[str, int]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"schema": "modicum.retrofit.quantize/1", **asdict(self)}

    def __str__(self) -> str:
        lines = [f"{'':<12}{'tensors':>8}{'MB before':>12}{'MB after':>12}{'RMS error':>12}{'relative':>10}"]
        for k in self.kinds:
            error = f"{k.rms_error:>12.3g}{k.relative_error:>10.4f}" if k.rms_error else f"{'-':>12}{'-':>10}"
            lines.append(
                f"{k.kind:<12}{k.tensors:>8}{k.bytes_before / 1e6:>12.3f}{k.bytes_after / 1e6:>12.3f}{error}"
            )
        before, after = self.bytes_before / 1e6, self.bytes_after / 1e6
        lines.append(f"{'all':<12}{'':>8}{before:>12.3f}{after:>12.3f}")
        choices = ", ".join(f"{name} {size / 1e6:.3f} MB" for name, size in self.head_choices.items())
        lines.append(f"all, by choice of the head: {choices} (here: {self.head})")
        if self.kept:
            lines.append(f"kept in floats, columns no multiple of {self.group}: {', '.join(self.kept)}")
        lines.append(f"{self.seconds:.2f} s")
        return "\n".join(lines)


def quantize(
    source: str | Path,
    out: str | Path,
    *,
    bits: int = 8,
    group: int | Literal["channel"] = 32,
    head: Head = "keep",
    threads: int | None = None,
    progress: Progress | None = None,
) -> QuantizeReport:
    """Rounds the linear layers of the model in `source` to integers and writes the directory `out`.

    Symmetric, by groups of columns with a scale each; of 15 scales for a group the one with the least squared
    error. Needs no text and little memory. `out` loads in modicum and, with compressed-tensors, in
    transformers; its format, "pack-quantized", is also that of vLLM. It appears whole or not at all.
    Embedding, norms, biases, and layers whose columns are no multiple of `group` stay as they are.

    Parameters
    ----------
    bits : 8 or 4.
    group : columns that share a scale, a multiple of 32; or "channel", with 8 bits: all of a row, for
        activations rounded to int8 with a scale a token (W8A8, "int-quantized"). That reads prompts faster,
        with a larger error.
    head : "keep" leaves the output head in floats, and tied where it is; "int8" and "int4" make integers of
        it, which are stored beside a tied embedding: more bytes on disk, but fewer to read for each token.
    threads : None means every processor that this process may use.
    progress : called with (stage, bytes done, bytes in all); returning False stops.

    Raises
    ------
    InvalidArgument
        For options that make no sense, and where `out` holds something already.
    FormatError
        For a weight that is not finite, or a missing tensor, by name.
    Unsupported
        Where `source` is quantised already, or no layer fits `group`.
    IoError, Cancelled
    """
    if head not in _HEAD_BITS:
        raise InvalidArgument(f"[quantize] head: expected one of {', '.join(_HEAD_BITS)}, got {head!r}")
    columns = 0 if group == "channel" else group
    if isinstance(columns, str):
        raise InvalidArgument(f"[quantize] group: expected a multiple of 32 or 'channel', got {group!r}")
    counts = {"bits": bits, "group": columns or 32, "threads": 1 if threads is None else threads}
    for name, value in counts.items():
        if value < 1:
            raise InvalidArgument(f"[quantize] {name}: expected at least 1, got {value}")
    result = _core.quantize(
        source,
        out,
        bits=bits,
        group=columns,
        head_bits=_HEAD_BITS[head],
        threads=threads or 0,
        progress=progress,
    )
    return QuantizeReport(
        bits=bits,
        group=group,
        head=head,
        kinds=[_kind(**kind) for kind in result["kinds"]],
        kept=result["kept"],
        bytes_before=result["bytes_before"],
        bytes_after=result["bytes_after"],
        head_choices={
            name: result[f"bytes_head_{key}"] for name, key in _CHOICES.items() if result[f"bytes_head_{key}"]
        },
        seconds=result["seconds"],
    )


_CHOICES = {"keep": "kept", "int8": "int8", "int4": "int4"}


def _kind(mean_square_error: float, mean_square: float, **facts: Any) -> QuantizedKind:
    relative = (mean_square_error / mean_square) ** 0.5 if mean_square else 0.0
    return QuantizedKind(**facts, rms_error=mean_square_error**0.5, relative_error=relative)
