"""What a retrofit is to reach, as numbers."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from modicum._core import InvalidArgument

__all__ = ["Target", "parse_target"]

_OP = "[plan] target"
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_NAMES = {"kv_bytes": "kv_bytes_per_token"}


@dataclass(frozen=True)
class Target:
    """What is wanted; several together are to be met all.

    Attributes
    ----------
    bytes : of all weights on disk, at most.
    kv_bytes_per_token : of keys and values of one token in all layers, in bf16, at most.
    tokens_per_second : written on this machine, at least.
    max_kl : mean KL from the source in nats, at most. Alone: the fewest bytes within it.
    """

    bytes: int | None = None
    kv_bytes_per_token: int | None = None
    tokens_per_second: float | None = None
    max_kl: float | None = None

    def __post_init__(self) -> None:
        given = self.to_dict()
        if not given:
            raise InvalidArgument(f"{_OP}: expected at least one of {', '.join(vars(self))}, got none")
        for name, value in given.items():
            if not 0 < value < math.inf:
                raise InvalidArgument(f"{_OP} {name}: expected a positive number, got {value}")

    @property
    def only_kl(self) -> bool:
        """Whether a loss is all that is given, and the fewest bytes within it are wanted."""
        return list(self.to_dict()) == ["max_kl"]

    def to_dict(self) -> dict[str, Any]:
        """What is given."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def __str__(self) -> str:
        words = {
            "bytes": lambda v: f"at most {v / 1e6:.4g} MB",
            "kv_bytes_per_token": lambda v: f"at most {v} bytes of keys and values a token",
            "tokens_per_second": lambda v: f"at least {v:.4g} tokens/s",
            "max_kl": lambda v: f"a KL of at most {v:.3g}",
        }
        return " and ".join(words[name](value) for name, value in self.to_dict().items())


def parse_target(text: str) -> Target:
    """A target as a command line has it.

    >>> parse_target("bytes=300MB,kv_bytes=6KiB").kv_bytes_per_token
    6144

    Raises
    ------
    InvalidArgument
        For an unknown name, one given twice, and what is no number.
    """
    values: dict[str, Any] = {}
    for part in text.split(","):
        name, _, value = (word.strip() for word in part.partition("="))
        name = _NAMES.get(name, name)
        if name not in Target.__dataclass_fields__:
            known = ", ".join([*Target.__dataclass_fields__, *_NAMES])
            raise InvalidArgument(f"{_OP}: expected NAME=NUMBER with a name of {known}, got {part!r}")
        if name in values:
            raise InvalidArgument(f"{_OP} {name}: expected one number, got two")
        values[name] = _number(name, value)
    return Target(**values)


def _number(name: str, text: str) -> float | int:
    whole = name in ("bytes", "kv_bytes_per_token")
    found = re.fullmatch(r"(\d*\.?\d+(?:e[+-]?\d+)?)\s*([a-z]*)", text.lower())
    units = _UNITS if whole else {"": 1}
    if found is None or found[2] not in units:
        example = "300MB" if whole else "0.01"
        raise InvalidArgument(f"{_OP} {name}: expected a number such as {example}, got {text!r}")
    value = float(found[1]) * units[found[2]]
    return int(value) if whole else value
