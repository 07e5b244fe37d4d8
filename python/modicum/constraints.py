"""Constraints that are written in Python: functions, JSON schemas and grammars."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from modicum import _core
from modicum._core import Constraint, InvalidArgument

if TYPE_CHECKING:
    from modicum.model import Model

Ending = Literal["no", "may", "must"]
Allowed = tuple[str, Any, bool]


class Automaton(Protocol):
    """A constraint as an automaton over tokens: wrap an object of yours with :func:`automaton`.

    A state may be any object that is never changed; each beam holds one, so that a fork costs nothing.
    """

    ends_by_itself: bool
    """Whether a text that may end does end, in a search without stop tokens."""

    def root(self) -> Any:
        """The state before the first new token."""

    def allowed(self, state: Any) -> Allowed:
        """("all", None, may_end), ("only", token ids, may_end) or ("mask", uint32 words, may_end)."""

    def advance(self, state: Any, token: int) -> Any:
        """The state after `token`."""

    def ending(self, state: Any) -> Ending:
        """Whether a text may or must end in this state."""


ConstraintLike = Constraint | Callable[[list[int]], Sequence[int] | None] | Automaton


def as_constraint(given: ConstraintLike | None) -> Constraint | None:
    """A constraint of the engine for whatever a search was given as one."""
    if given is None or isinstance(given, Constraint):
        return given
    if hasattr(given, "advance"):
        return _core.PythonConstraint(given)
    if callable(given):
        return _core.PythonConstraint(_Function(given))
    raise InvalidArgument(
        f"[beam] constraint: expected one of modicum.search, an automaton or a function, got {given!r}"
    )


def phrases(
    model: Model, *, banned: Sequence[str] = (), required: Sequence[str] = (), ignore_case: bool = False
) -> Constraint:
    """Texts without any of `banned` and with all of `required`, however they are cut into tokens.

    Parameters
    ----------
    banned : never occur in the new text, within words neither.
    required : at most 32, in any order. The search is driven towards them, each beam competing with those
        that have come as far (dynamic beam allocation: Post & Vilar 2018, arXiv:1804.06609): give it beams.
    ignore_case : of ASCII letters.
    """
    return _core.PhraseConstraint(
        model._core, banned=list(banned), required=list(required), ignore_case=ignore_case
    )


def all_of(*constraints: ConstraintLike) -> Constraint:
    """Texts that all of `constraints` allow: a grammar without certain words, say."""
    parts = [part for given in constraints if (part := as_constraint(given)) is not None]
    return _core.AllOf(parts)


class _Function:
    """`allowed(ids)` as an automaton: a state is the path of tokens, shared between beams."""

    ends_by_itself = False

    def __init__(self, allowed: Callable[[list[int]], Sequence[int] | None]) -> None:
        self._allowed = allowed

    def root(self) -> tuple[()]:
        return ()

    def allowed(self, state: Any) -> Allowed:
        ids = []
        while state:
            state, token = state
            ids.append(token)
        found = self._allowed(ids[::-1])
        if found is None:
            return ("all", None, True)
        try:
            allowed = [operator.index(i) for i in found]
        except TypeError:
            raise InvalidArgument(
                f"[beam] constraint: expected token ids or None of the function, got {found!r}"
            ) from None
        # Whether the text may end is a matter of the stop tokens among them.
        return ("only", allowed, False)

    def advance(self, state: Any, token: int) -> Any:
        return (state, token)

    def ending(self, _state: Any) -> Ending:
        return "may"


class Grammar:
    """Texts of a JSON schema, a regular expression or a Lark grammar, by llguidance.

    A state is a matcher of its own, copied when a beam goes on: what was written is never parsed again.
    Needs the package ``llguidance`` (``pip install modicum[grammar]``).

    >>> schema = mo.search.Grammar.json(model, {"type": "object", "properties": {"age": {"type": "integer"}}})
    >>> model.beam_search("As JSON: ", constraint=schema, stop_ids=[])
    """

    ends_by_itself = True

    def __init__(self, model: Model, grammar: str) -> None:
        matcher = _matcher()
        from llguidance import LLTokenizer

        eos = model.config.eos_token_ids
        tokenizer = LLTokenizer(
            str(model.path / "tokenizer.json"),
            n_vocab=model.config.vocab_size,
            eos_token=eos[0] if eos else None,
        )
        self._root = matcher(tokenizer, grammar, log_level=0)
        if self._root.is_error():
            raise InvalidArgument(f"[grammar] grammar: {self._root.get_error()}")

    @classmethod
    def json(cls, model: Model, schema: dict[str, Any] | str, *, whitespace: bool = False) -> Grammar:
        """JSON texts of a JSON schema (draft 2020-12, as far as llguidance goes; it names what it refuses).

        `whitespace` lets the model lay the text out as it likes, which small models tend not to end.
        """
        options: Any = {"whitespace_flexible": whitespace}
        try:
            return cls(model, _matcher().grammar_from_json_schema(schema, overrides=options))
        except ValueError as error:
            raise InvalidArgument(f"[grammar] JSON schema: {error}") from None

    @classmethod
    def regex(cls, model: Model, expression: str) -> Grammar:
        """Texts that a regular expression matches as a whole."""
        return cls(model, _matcher().grammar_from_regex(expression))

    @classmethod
    def lark(cls, model: Model, grammar: str) -> Grammar:
        """Texts of a context-free grammar in Lark's notation."""
        return cls(model, _matcher().grammar_from_lark(grammar))

    def root(self) -> Any:
        return self._root

    def allowed(self, state: Any) -> Allowed:
        mask = np.frombuffer(state.compute_bitmask(), dtype=np.uint32)
        return ("mask", mask, state.is_accepting())

    def advance(self, state: Any, token: int) -> Any:
        following = state.deep_copy()
        if not following.consume_token(token):
            raise InvalidArgument(
                f"[grammar] token {token}: expected an allowed one; {following.get_error()}"
            )
        return following

    def ending(self, state: Any) -> Ending:
        if state.is_stopped():
            return "must"
        return "may" if state.is_accepting() else "no"


def _matcher() -> Any:
    try:
        from llguidance import LLMatcher
    except ImportError:
        raise InvalidArgument(
            "[grammar] llguidance: expected it installed, got none; pip install 'modicum[grammar]'"
        ) from None
    return LLMatcher


__all__ = [
    "Allowed",
    "Automaton",
    "ConstraintLike",
    "Ending",
    "Grammar",
    "all_of",
    "as_constraint",
    "phrases",
]
