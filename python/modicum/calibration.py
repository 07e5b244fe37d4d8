"""Token sequences that a retrofit learns from, and held-out ones that tell whether it learnt too much."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from modicum._core import ContextOverflow, Error, InvalidArgument, Tokenizer
from modicum.model import Model, Progress, Prompt
from modicum.own_text import OwnText, generate_text
from modicum.text_sources import Source, TokenSource, read_source

__all__ = ["Calibration", "SourceUse", "bos_tokens", "leading_windows"]

_OP = "[calibration]"
_LENGTH = 512
_STRETCHES = 32  # that a source is cut into; whole ones are held out
Mix = Mapping[str | Path, float] | Sequence[float]


@dataclass(frozen=True)
class SourceUse:
    """What was taken from one source.

    Attributes
    ----------
    name : the path as given, "ids" or "own text".
    kind : "text", "ids" or "own text".
    sha256 : of the text in UTF-8, or of the ids as little-endian int32.
    tokens : that it has.
    sequences, held_out : taken from it.
    weight : its share of all sequences, held-out ones among them.
    origin : how text of a model's own was made; None for other sources.
    """

    name: str
    kind: str
    sha256: str
    tokens: int
    sequences: int
    held_out: int
    weight: float
    origin: dict[str, Any] | None = None


@dataclass(frozen=True)
class Calibration:
    """Calibration sequences, in an order in which every beginning is a mix of all sources.

    Attributes
    ----------
    sequences : int32 [n, length].
    held_out : int32 [m, length], from other stretches of the sources.
    bos : token ids that begin every sequence; empty where a prompt does not begin with BOS either.
    """

    sequences: npt.NDArray[np.int32] = field(repr=False)
    held_out: npt.NDArray[np.int32] = field(repr=False)
    sources: list[SourceUse]
    bos: list[int]
    seed: int

    @property
    def length(self) -> int:
        """Tokens of each sequence."""
        return int(self.sequences.shape[1])

    @property
    def tokens(self) -> int:
        """Of all sequences, the held-out ones not among them."""
        return int(self.sequences.size)

    @classmethod
    def from_text(
        cls,
        model: Model | Tokenizer,
        sources: Source | Sequence[Source],
        *,
        tokens: int = 65536,
        length: int | None = None,
        seed: int = 0,
        mix: Mix | None = None,
        held_out: float = 0.125,
        bos: Literal["model", "always", "never"] = "model",
        field: str | Sequence[str] = "text",
    ) -> Calibration:
        """Windows of the sources, chosen by `seed`, that do not overlap.

        Each source is a stream of tokens cut into windows; whole stretches of neighbouring windows are set
        aside as held-out, so that no held-out text is seen in calibration, and little of it nearby.

        Parameters
        ----------
        model : whose tokenizer and context are used; a bare tokenizer where there is no model yet.
        sources : a .txt or .md file (or .html, .pdf and .docx with the extra ``documents``), a .jsonl file, a
            folder of such, an integer array of token ids [tokens] or [sequences, tokens], what
            :meth:`generate` gives; or several of them.
        tokens : of all calibration sequences; rounded to whole sequences.
        length : tokens of a sequence, its BOS included. None is 512, or the context where that is less:
            short sequences show more different text for the same work.
        mix : the share of each source by its path, or a weight for each in order. None takes from each as
            it has tokens.
        held_out : held-out tokens for each calibration token; at least one sequence is held out.
        bos : "model" begins each sequence with BOS where prompts begin with it: where the tokenizer adds it
            or else the chat template writes it. A model that always sees BOS gives it huge activations, and
            statistics without them are of another model.
        field : of each object in a .jsonl file; several are joined by line breaks.

        Raises
        ------
        InvalidArgument
            Where a source has too few tokens (telling how many there are and how many are needed), and for
            options that make no sense.
        ContextOverflow
            Where `length` is more than the model's context.
        FormatError, IoError, Unsupported
            For a source that cannot be read.
        """
        context = model.config.max_position_embeddings if isinstance(model, Model) else None
        length = min(_LENGTH, context or _LENGTH) if length is None else length
        begin = bos_tokens(model, bos)
        _check(tokens, length, held_out, len(begin), context)
        given = [sources] if isinstance(sources, (str, Path, np.ndarray, OwnText)) else list(sources)
        if not given:
            raise InvalidArgument(f"{_OP} sources: expected at least one, got none")
        weights = _weights(given, mix)

        def tokenizer() -> Tokenizer:
            return model.tokenizer if isinstance(model, Model) else model

        fields = [field] if isinstance(field, str) else list(field)
        read = [read_source(source, tokenizer, fields=fields, bos=begin) for source in given]
        _check_vocabulary(read, model.config.vocab_size if isinstance(model, Model) else len(model))

        count = max(1, round(tokens / length))
        aside = max(1, round(held_out * count))
        payload = length - len(begin)
        shares = _shares(read, weights, count, aside, payload)
        rng = np.random.default_rng(seed)
        learnt, kept = [], []
        for source, (taken, out) in zip(read, shares, strict=True):
            windows = source.ids[: len(source.ids) // payload * payload].reshape(-1, payload)
            chosen, held = _choose(len(windows), taken, out, rng)
            learnt.append(windows[chosen])
            kept.append(windows[held])
        return cls(
            sequences=_join(learnt, begin, rng),
            held_out=_join(kept, begin, rng),
            sources=[
                SourceUse(
                    name=source.name,
                    kind=source.kind,
                    sha256=source.sha256,
                    tokens=len(source.ids),
                    sequences=taken,
                    held_out=out,
                    weight=round((taken + out) / (count + aside), 6),
                    origin=source.origin,
                )
                for source, (taken, out) in zip(read, shares, strict=True)
            ],
            bos=begin,
            seed=seed,
        )

    @staticmethod
    def generate(
        model: Model,
        tokens: int,
        *,
        prompts: Sequence[Prompt] | None = None,
        temperature: float = 1.0,
        length: int | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> OwnText:
        """Text that the model writes itself, as a source for :meth:`from_text`.

        What a model writes shows what it learnt even where its training text is unknown (Ji et al. 2025,
        arXiv:2410.17711: own text calibrates pruning better than foreign text).

        Parameters
        ----------
        tokens : at least that many are sampled. `from_text` needs (1 + held_out) times its tokens.
        prompts : what the texts begin with in turn, text or ids. None begins all with BOS.
        temperature : above 0; 1 samples the model's own distribution.
        length : at which a text ends that met no EOS. None is 512, or the context where that is less.
        progress : called with ("own text", tokens done, tokens in all); returning False stops.

        Raises
        ------
        InvalidArgument
            Where the model has no BOS and no prompts are given, and for options that make no sense.
        ContextOverflow
            Where `length` is more than the model's context.
        Cancelled
        """
        return generate_text(
            model,
            tokens,
            prompts=prompts,
            temperature=temperature,
            length=length,
            seed=seed,
            progress=progress,
        )

    def describe(self) -> dict[str, Any]:
        """What it consists of, as a report states it."""
        return {
            "sequences": len(self.sequences),
            "held_out": len(self.held_out),
            "length": self.length,
            "tokens": self.tokens,
            "bos": self.bos,
            "seed": self.seed,
            "sha256": hashlib.sha256(
                self.sequences.astype("<i4").tobytes() + self.held_out.astype("<i4").tobytes()
            ).hexdigest(),
            "sources": [{k: v for k, v in vars(s).items() if v is not None} for s in self.sources],
        }

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"schema": "modicum.retrofit.calibration/1", **self.describe()}


def leading_windows(
    model: Model, sources: Source | Sequence[Source], *, tokens: int, length: int
) -> npt.NDArray[np.int32]:
    """The first `tokens` tokens of `sources`, or all that there are, in windows: int32 [n, at most `length`].

    Every window begins with BOS where the model's prompts do; what is left over behind the last is dropped.
    Raises InvalidArgument where there is no text, and as :meth:`Calibration.from_text` for sources.
    """
    begin = bos_tokens(model)
    given = [sources] if isinstance(sources, (str, Path, np.ndarray, OwnText)) else list(sources)
    read = [read_source(source, lambda: model.tokenizer, fields=["text"], bos=begin) for source in given]
    _check_vocabulary(read, model.config.vocab_size)
    ids = np.concatenate([source.ids for source in read])[:tokens] if read else np.zeros(0, np.int32)
    size = min(length, model.config.max_position_embeddings) - len(begin)
    size = min(size, len(ids))
    if size + len(begin) < 2:
        raise InvalidArgument(f"{_OP} sources: expected at least two tokens of text, got {len(ids)}")
    rows = ids[: len(ids) // size * size].reshape(-1, size)
    return np.concatenate([np.tile(np.array(begin, np.int32), (len(rows), 1)), rows], axis=1)


def _check(tokens: int, length: int, held_out: float, begin: int, context: int | None) -> None:
    if tokens < 1:
        raise InvalidArgument(f"{_OP} tokens: expected at least 1, got {tokens}")
    if length < begin + 2:
        raise InvalidArgument(f"{_OP} length: expected at least {begin + 2}, got {length}")
    if context is not None and length > context:
        raise ContextOverflow(f"{_OP} length: expected at most the context, {context}, got {length}")
    if not 0 < held_out <= 1:
        raise InvalidArgument(f"{_OP} held_out: expected more than 0 and at most 1, got {held_out}")


def bos_tokens(model: Model | Tokenizer, policy: str = "model") -> list[int]:
    """The tokens that every sequence begins with; see `bos` of :meth:`Calibration.from_text`."""
    if policy == "never":
        return []
    if policy not in ("model", "always"):
        raise InvalidArgument(f"{_OP} bos: expected 'model', 'always' or 'never', got {policy!r}")
    if isinstance(model, Tokenizer):
        added = _added(model)
        if policy == "always" and not added:
            raise InvalidArgument(
                f"{_OP} bos: expected a tokenizer that adds BOS, got one that does not; pass the model"
            )
        return added
    bos = model.config.bos_token_id
    # Sources of ids alone need no tokenizer.
    added = _added(model.tokenizer) if (model.path / "tokenizer.json").exists() else []
    if added:
        return added
    if policy == "always":
        if bos is None:
            raise InvalidArgument(f"{_OP} bos: expected a model with a BOS token, got none")
        return [bos]
    return [bos] if bos is not None and _chat_begins_with(model, bos) else []


def _added(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer puts before a text."""
    plain, whole = tokenizer.encode("a", add_special_tokens=False), tokenizer.encode("a")
    for at in range(len(whole) - len(plain) + 1):
        if whole[at : at + len(plain)] == plain:
            return whole[:at]
    return []


def _chat_begins_with(model: Model, bos: int) -> bool:
    if model.chat_template is None:
        return False
    try:
        return model.chat_prompt([{"role": "user", "content": "a"}])[:1] == [bos]
    except Error:  # a template that wants other messages
        return False


def _weights(given: Sequence[Source], mix: Mix | None) -> list[float] | None:
    """The share of each source, in order; None without a mix."""
    if mix is None:
        return None
    if isinstance(mix, Mapping):
        names = [str(source) if isinstance(source, (str, Path)) else "" for source in given]
        by_name = {str(name): float(weight) for name, weight in mix.items()}
        unknown, missing = set(by_name) - set(names), set(names) - set(by_name)
        if unknown or missing:
            what = f"{min(unknown)!r}, which is no source" if unknown else f"none for {min(missing)!r}"
            raise InvalidArgument(
                f"{_OP} mix: expected a weight for the path of each source, got {what}; "
                "give a list of weights for sources that have no path"
            )
        weights = [by_name[name] for name in names]
    else:
        weights = [float(weight) for weight in mix]
    if len(weights) != len(given) or not all(0 < w < math.inf for w in weights):
        raise InvalidArgument(f"{_OP} mix: expected {len(given)} positive weights, got {weights}")
    return [weight / sum(weights) for weight in weights]


def _check_vocabulary(sources: Sequence[TokenSource], vocabulary: int) -> None:
    for source in sources:
        if len(source.ids) and int(source.ids.max()) >= vocabulary:
            raise InvalidArgument(
                f"{_OP} {source.name}: expected ids below {vocabulary}, got {int(source.ids.max())}"
            )


def _shares(
    sources: Sequence[TokenSource], weights: Sequence[float] | None, count: int, aside: int, payload: int
) -> list[tuple[int, int]]:
    """Calibration and held-out windows of each source."""
    room = [len(source.ids) // payload for source in sources]
    total = sum(room)
    if weights is None and total < count + aside:
        raise InvalidArgument(
            f"{_OP} sources: expected at least {(count + aside) * payload} tokens for {count} calibration "
            f"and {aside} held-out sequences, got {sum(len(s.ids) for s in sources)}; "
            "give more text, or ask for fewer tokens or shorter sequences"
        )
    wanted = _apportion(count + aside, weights or room)
    for source, has, needs in zip(sources, room, wanted, strict=True):
        if needs > has:
            raise InvalidArgument(
                f"{_OP} {source.name}: expected at least {needs * payload} tokens for its share of the mix, "
                f"got {len(source.ids)}; give more text, ask for fewer tokens, or give it less weight"
            )
    kept = _apportion(aside, wanted)
    return [(needs - out, out) for needs, out in zip(wanted, kept, strict=True)]


def _apportion(count: int, weights: Sequence[float]) -> list[int]:
    """`count` in whole parts by weight, the largest remainders first (Hamilton's method)."""
    exact = [count * weight / sum(weights) for weight in weights]
    parts = [int(part) for part in exact]
    order = sorted(range(len(parts)), key=lambda i: (parts[i] - exact[i], i))
    for i in order[: count - sum(parts)]:
        parts[i] += 1
    return parts


def _choose(
    windows: int, taken: int, held: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Which of `windows` to learn from and which to hold out, in whole stretches where there are enough."""
    stretch = max(1, windows // _STRETCHES)
    stretches = [np.arange(at, min(at + stretch, windows)) for at in range(0, windows, stretch)]
    aside, left = [np.empty(0, np.int64)], held
    for i in rng.permutation(len(stretches)):
        if left <= 0:
            break
        aside.append(stretches[i])
        left -= len(stretches[i])
    apart = np.concatenate(aside)
    # Of the last stretch only what is needed, if otherwise too little were left to learn from.
    if windows - len(apart) < taken:
        apart = apart[: windows - taken]
    free = np.setdiff1d(np.arange(windows), apart)
    return rng.permutation(free)[:taken], rng.permutation(apart)[:held]


def _join(
    parts: Sequence[npt.NDArray[np.int32]], begin: Sequence[int], rng: np.random.Generator
) -> npt.NDArray[np.int32]:
    """The windows of all sources in a mixed order, each behind `begin`: int32 [n, length], read-only."""
    rows = rng.permutation(np.concatenate(parts))
    bos = np.broadcast_to(np.array(begin, dtype=np.int32), (len(rows), len(begin)))
    joined = np.ascontiguousarray(np.concatenate([bos, rows], axis=1), dtype=np.int32)
    joined.setflags(write=False)
    return joined
