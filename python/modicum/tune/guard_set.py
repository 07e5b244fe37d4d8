"""The declared set of a guard: what a model must still do, in which words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from modicum._core import FormatError, IoError

__all__ = ["Choice", "GuardSet", "Reply"]

_SCHEMA = "modicum.tune.guard/1"


@dataclass(frozen=True)
class Choice:
    """A message, and beginnings of replies that are wanted or not.

    Attributes
    ----------
    wanted, unwanted : of a refusal, openers that refuse and that comply; of a format, replies that keep to it
        and that do not.
    system : the system message before it; "": none.
    language : a tag by which a report groups ("en").
    """

    prompt: str
    wanted: tuple[str, ...]
    unwanted: tuple[str, ...]
    system: str = ""
    language: str = ""


@dataclass(frozen=True)
class Reply:
    """A message and a whole reply, after which the turn must end."""

    prompt: str
    answer: str
    system: str = ""
    language: str = ""


@dataclass(frozen=True)
class GuardSet:
    """What a guard looks at. Every part may be empty; what is not there is not checked.

    Attributes
    ----------
    refusals : requests that are to be declined.
    formats : requests for a form of answer.
    replies : exchanges with their end.
    neutral : plain text, on which a model is to be as the reference is.
    """

    name: str
    refusals: tuple[Choice, ...] = ()
    formats: tuple[Choice, ...] = ()
    replies: tuple[Reply, ...] = ()
    neutral: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("refusals", "formats", "replies", "neutral"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not (self.refusals or self.formats or self.replies or self.neutral):
            raise FormatError(f"[guard] {self.name!r}: expected something to check, got nothing")

    @classmethod
    def default(cls) -> GuardSet:
        """The set that comes with modicum: everyday and improper requests in seven languages."""
        text = resources.files("modicum.tune").joinpath("guard.json").read_text("utf-8")
        return cls.from_dict(json.loads(text))

    @classmethod
    def load(cls, path: str | Path) -> GuardSet:
        """From a JSON file as :meth:`to_dict` writes it. Raises IoError, FormatError."""
        try:
            document = json.loads(Path(path).read_text("utf-8"))
        except OSError as error:
            raise IoError(f"[guard] reading {str(path)!r}, failed: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise FormatError(f"[guard] {str(path)!r}: expected JSON, got an error: {error}") from None
        return cls.from_dict(document)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> GuardSet:
        """Raises FormatError, naming the field."""
        fields = _fields(document, {"schema", "name", "refusals", "formats", "replies", "neutral"}, "set")
        if fields.get("schema", _SCHEMA) != _SCHEMA:
            raise FormatError(f"[guard] schema: expected {_SCHEMA!r}, got {fields['schema']!r}")
        return cls(
            name=_text(fields, "name", "set", "a guard"),
            refusals=tuple(_choice(entry, "refusals") for entry in _list(fields, "refusals")),
            formats=tuple(_choice(entry, "formats") for entry in _list(fields, "formats")),
            replies=tuple(_reply(entry) for entry in _list(fields, "replies")),
            neutral=tuple(_neutral(entry) for entry in _list(fields, "neutral")),
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"schema": _SCHEMA, **asdict(self)}

    @property
    def languages(self) -> list[str]:
        entries: list[Choice | Reply] = [*self.refusals, *self.formats, *self.replies]
        return sorted({entry.language for entry in entries if entry.language})

    def __str__(self) -> str:
        counts = (
            f"{len(self.refusals)} refusals, {len(self.formats)} formats, {len(self.replies)} replies, "
            f"{len(self.neutral)} neutral texts"
        )
        languages = f" in {', '.join(self.languages)}" if self.languages else ""
        return f"{self.name}: {counts}{languages}"


def _choice(entry: Any, where: str) -> Choice:
    fields = _fields(entry, {"prompt", "wanted", "unwanted", "system", "language"}, where)
    return Choice(
        prompt=_text(fields, "prompt", where),
        wanted=_texts(fields, "wanted", where),
        unwanted=_texts(fields, "unwanted", where),
        system=_text(fields, "system", where, ""),
        language=_text(fields, "language", where, ""),
    )


def _reply(entry: Any) -> Reply:
    fields = _fields(entry, {"prompt", "answer", "system", "language"}, "replies")
    return Reply(
        prompt=_text(fields, "prompt", "replies"),
        answer=_text(fields, "answer", "replies"),
        system=_text(fields, "system", "replies", ""),
        language=_text(fields, "language", "replies", ""),
    )


def _neutral(entry: Any) -> str:
    if not isinstance(entry, str) or not entry.strip():
        raise FormatError("[guard] neutral: expected texts, got another value")
    return entry


def _fields(value: Any, known: set[str], where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise FormatError(f"[guard] {where}: expected an object, got {type(value).__name__}")
    if unknown := sorted(set(value) - known):
        raise FormatError(f"[guard] {where}: expected some of {', '.join(sorted(known))}, got {unknown[0]!r}")
    return value


def _list(fields: Mapping[str, Any], name: str) -> list[Any]:
    value = fields.get(name, [])
    if not isinstance(value, list | tuple):
        raise FormatError(f"[guard] {name}: expected a list, got {type(value).__name__}")
    return list(value)


def _text(fields: Mapping[str, Any], name: str, where: str, fallback: str | None = None) -> str:
    value = fields.get(name, fallback)
    if not isinstance(value, str) or (fallback is None and not value.strip()):
        raise FormatError(f"[guard] {where}: {name}: expected text, got {value!r}")
    return value


def _texts(fields: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    values = _list(fields, name)
    if not values or not all(isinstance(value, str) and value for value in values):
        raise FormatError(f"[guard] {where}: {name}: expected at least one text, got {values!r}")
    return tuple(values)
