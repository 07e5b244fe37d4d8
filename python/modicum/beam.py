"""What a beam search takes and what it gives."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

import numpy as np
import numpy.typing as npt

from modicum import _core, tree_picture
from modicum._core import BeamStats, Branch, Constraint, InvalidArgument, Tokenizer
from modicum.constraints import as_constraint

EarlyStopping = bool | Literal["never"]
Progress = Callable[[str, int, int], object]

if TYPE_CHECKING:
    from modicum.constraints import ConstraintLike

    class BeamKeywords(TypedDict, total=False):
        """The keyword arguments that every beam search takes; see :func:`modicum.search.beam`."""

        beams: int
        max_new_tokens: int
        min_new_tokens: int
        length_penalty: float
        early_stopping: EarlyStopping
        num_return: int
        stop_ids: Sequence[int] | None
        stop: str | Sequence[str] | None
        repetition_penalty: float
        no_repeat_ngram_size: int
        bad_words: Sequence[Sequence[int]]
        sequence_bias: Mapping[tuple[int, ...], float]
        forced_bos: int | None
        forced_eos: Sequence[int]
        suppress: Sequence[int]
        begin_suppress: Sequence[int]
        groups: int
        diversity_penalty: float
        temperature: float
        top_k: int
        top_p: float
        min_p: float
        seed: int
        mode: Literal["transformers", "native"]
        when_full: Literal["fail", "narrow"]
        constraint: ConstraintLike | None
        stream: Callable[[str], object] | None
        progress: Progress | None


SAMPLING: dict[str, Any] = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 0}
_EARLY = {False: "no", True: "yes", "never": "never"}
_PLAIN = (
    *("beams", "max_new_tokens", "min_new_tokens", "length_penalty", "num_return", "repetition_penalty"),
    *("no_repeat_ngram_size", "forced_bos", "groups", "diversity_penalty", "keep_states"),
)


def make_options(given: Mapping[str, Any], stop_ids: Sequence[int]) -> _core.BeamOptions:
    """`given` keyword arguments as the engine takes them; `stop_ids` where none are among them."""
    options = _core.BeamOptions()
    _set_sampling(options, {name: given.get(name, default) for name, default in SAMPLING.items()})
    rest = {name: value for name, value in given.items() if name not in SAMPLING}
    if rest.get("stop_ids") is None:
        rest["stop_ids"] = stop_ids
    for name, value in rest.items():
        if name not in _PLAIN and name not in _CONVERTED:
            raise TypeError(f"beam search got an unexpected keyword argument {name!r}")
        convert, expected = _CONVERTED.get(name, (None, f"a value like {getattr(options, name)!r}"))
        try:
            setattr(options, name, value if convert is None else convert(value))
        except (AttributeError, KeyError, TypeError, ValueError):
            raise InvalidArgument(f"[beam] {name}: expected {expected}, got {value!r}") from None
    return options


def _set_sampling(options: _core.BeamOptions, given: dict[str, Any]) -> None:
    for name, default in SAMPLING.items():
        try:
            options.set_sampling(**{**SAMPLING, name: given[name]})
        except TypeError:
            expected = f"a value like {default!r}"
            raise InvalidArgument(f"[beam] {name}: expected {expected}, got {given[name]!r}") from None
    options.set_sampling(**given)


def _ids(value: Any) -> list[int]:
    return [operator.index(i) for i in value]


def _strings(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def _biases(value: Any) -> list[_core.SequenceBias]:
    return [_core.SequenceBias(_ids(ids), float(bias)) for ids, bias in value.items()]


def _early_stopping(value: EarlyStopping) -> _core.EarlyStopping:
    if not isinstance(value, bool | str):
        raise TypeError
    return _core.EarlyStopping.__members__[_EARLY[value]]


def _choice(kind: Any) -> tuple[Callable[[Any], Any], str]:
    return kind.__members__.__getitem__, " or ".join(map(repr, kind.__members__))


_CONVERTED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "stop_ids": (_ids, "token ids"),
    "stop": (_strings, "a string or several"),
    "early_stopping": (_early_stopping, "False, True or 'never'"),
    "mode": _choice(_core.BeamMode),
    "when_full": _choice(_core.WhenFull),
    "bad_words": (lambda words: [_ids(word) for word in words], "sequences of token ids"),
    "sequence_bias": (_biases, "numbers by tuples of token ids"),
    "forced_eos": (_ids, "token ids"),
    "suppress": (_ids, "token ids"),
    "begin_suppress": (_ids, "token ids"),
}


def settings_of(
    options: Any, *, stop_ids: Sequence[int] = (), logits: bool = True, **more: Any
) -> tuple[_core.BeamOptions, dict[str, Any]]:
    """The engine's options, and those of `options` that are no plain values."""
    given = {**options, **more}
    rest = {name: given.pop(name, None) for name in ("constraint", "progress", "stream")}
    for name in ("progress", "stream"):
        if rest[name] is not None and not callable(rest[name]):
            raise InvalidArgument(f"[beam] {name}: expected a function, got {rest[name]!r}")
    rest["constraint"] = as_constraint(rest["constraint"])
    settings = make_options(given, stop_ids)
    settings.scores = _core.ModelScores.logits if logits else _core.ModelScores.log_probabilities
    return settings, rest


@dataclass(frozen=True)
class Hypothesis:
    """One result of a beam search.

    Attributes
    ----------
    text : without special tokens, and without the stop string that ended it, unless that began in the prompt.
    ids : the new tokens, with the stop token that ended them, if one did.
    score : sum of log-probabilities / length ** length_penalty.
    log_probabilities : of each of `ids`, after processors (natural logarithm).
    finish_reason : "stop_token", "stop_string", "length", or "complete": its constraint allows nothing more.
    node : the last token's place in the search's tree.
    """

    text: str
    ids: list[int]
    score: float
    log_probabilities: list[float] = field(repr=False, default_factory=list)
    finish_reason: str = "length"
    node: int = field(repr=False, default=0)
    state: Branch | None = field(repr=False, default=None)

    def __str__(self) -> str:
        return self.text

    @functools.cached_property
    def branch(self) -> Branch:
        """The leaf that has read the prompt and all of `ids`: search, generate or ask on from here.

        Only of a search that was told to `keep_states`. The last token is read on first use.
        """
        if self.state is None:
            raise InvalidArgument("[beam] branch: expected a search with keep_states=True, got one without")
        return self.state.extend(self.ids[-1:])


@dataclass(frozen=True)
class SearchTree:
    """Everything that was ever a beam or a hypothesis, as a trie.

    Attributes
    ----------
    tokens : int64 [nodes], -1 at the root (node 0), which is the end of the prompt.
    parents : int64 [nodes], each smaller than its node; the root is its own.
    log_probabilities : float32 [nodes], of the token alone.
    scores : float32 [nodes], sum of those from the root.
    hypotheses : node of each returned hypothesis, best first.
    """

    tokens: npt.NDArray[np.int64]
    parents: npt.NDArray[np.int64]
    log_probabilities: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    hypotheses: list[int]
    tokenizer: Tokenizer | None = field(repr=False, default=None)

    def __len__(self) -> int:
        return len(self.tokens)

    def path(self, node: int) -> list[int]:
        """The tokens from the prompt to `node`."""
        ids = []
        while node != 0:
            ids.append(int(self.tokens[node]))
            node = int(self.parents[node])
        return ids[::-1]

    def to_dot(self) -> str:
        """The tree in Graphviz's language, runs without a fork as one node."""
        return tree_picture.dot(self)

    def to_svg(self, *, max_nodes: int = 400) -> str:
        """A picture: runs without a fork are one box, at most `max_nodes` of them beside the hypotheses."""
        return tree_picture.svg(self, max_nodes=max_nodes)

    def _repr_svg_(self) -> str:
        return self.to_svg()


class BeamResult(Sequence[Hypothesis]):
    """The hypotheses of a search, best first, with what it took.

    Attributes
    ----------
    tree : everything that was ever a beam (:class:`SearchTree`).
    stats : steps, rows (tokens read after the prompt), peak_tokens (the most that beams held at once, shared
        ones once) and width.
    """

    def __init__(self, hypotheses: Sequence[Hypothesis], tree: SearchTree, stats: BeamStats) -> None:
        self._hypotheses = list(hypotheses)
        self.tree = tree
        self.stats = stats

    @overload
    def __getitem__(self, index: int) -> Hypothesis: ...
    @overload
    def __getitem__(self, index: slice) -> list[Hypothesis]: ...
    def __getitem__(self, index: int | slice) -> Hypothesis | list[Hypothesis]:
        return self._hypotheses[index]

    def __len__(self) -> int:
        return len(self._hypotheses)

    def __repr__(self) -> str:
        return f"<modicum.BeamResult of {len(self)}: {self._hypotheses[0]!r}, …>"

    def _repr_html_(self) -> str:
        return tree_picture.html(self)


def make_result(found: _core.BeamResult, tokenizer: Tokenizer | None, stop: Sequence[str]) -> BeamResult:
    """A search's outcome as Python objects."""
    states: list[Branch | None] = [*found.states] or [None] * len(found.hypotheses)
    tree, place = _make_tree(found, tokenizer)
    hypotheses = [
        Hypothesis(
            _text(h.ids, tokenizer, stop if h.finish_reason == "stop_string" else ()),
            list(h.ids),
            h.score,
            list(h.log_probabilities),
            h.finish_reason,
            int(place[h.node]),
            state,
        )
        for h, state in zip(found.hypotheses, states, strict=True)
    ]
    return BeamResult(hypotheses, tree, found.stats)


def _make_tree(
    found: _core.BeamResult, tokenizer: Tokenizer | None
) -> tuple[SearchTree, npt.NDArray[np.int64]]:
    """The tree without beams that are none (see `mode`), and the new place of each node."""
    scores = found.scores
    real = scores > -5e8
    place = np.cumsum(real) - 1
    hypotheses = [int(place[h.node]) for h in found.hypotheses]
    tree = SearchTree(
        found.tokens[real],
        place[found.parents[real]],
        found.log_probabilities[real],
        scores[real],
        hypotheses,
        tokenizer,
    )
    return tree, place


def _text(ids: Sequence[int], tokenizer: Tokenizer | None, stop: Sequence[str]) -> str:
    if tokenizer is None:
        return ""
    text = _core.TextStream(tokenizer, stop)
    return "".join(text.push(i) for i in ids) + text.finish()


class TextStream:
    """Hands a search's text to `stream` as soon as it is certain: whole characters, no stop string."""

    def __init__(self, stream: Callable[[str], object], tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._stream = stream
        self._text = _core.TextStream(tokenizer, stop)
        self._told = ""

    def __call__(self, ids: Sequence[int]) -> None:
        """Takes tokens that no later step can change."""
        self._tell("".join(self._text.push(i) for i in ids))

    def finish(self, text: str) -> None:
        """Takes the best hypothesis's text."""
        if text.startswith(self._told):
            self._tell(text[len(self._told) :])

    def _tell(self, piece: str) -> None:
        if piece:
            self._told += piece
            self._stream(piece)


def text_stream(stream: Any, tokenizer: Tokenizer | None, settings: _core.BeamOptions) -> TextStream | None:
    if stream is None:
        return None
    if tokenizer is None:
        raise InvalidArgument("[beam] stream: expected a tokenizer with it, got none")
    return TextStream(stream, tokenizer, settings.stop)


__all__ = ["BeamResult", "BeamStats", "Constraint", "EarlyStopping", "Hypothesis", "Progress", "SearchTree"]
