"""Text that a model wrote itself: calibration where no text of the model's own kind is at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from modicum import _core
from modicum._core import Branch, Cancelled, ContextOverflow, InvalidArgument
from modicum.decode import warp

if TYPE_CHECKING:
    from modicum.model import Model, Progress, Prompt

__all__ = ["OwnText", "generate_text"]

_OP = "[calibration.generate]"
_BRANCHES = 16  # texts that grow at a time: the weights are read once a step for all of them


@dataclass(frozen=True)
class OwnText:
    """Texts sampled from a model, a source of calibration tokens.

    Attributes
    ----------
    documents : int32 [tokens] each: what it began from and what followed, up to and with EOS, or up to a BOS.
    model : fingerprint of the model that wrote them.
    tokens : in all documents.
    """

    documents: list[npt.NDArray[np.int32]] = field(repr=False)
    model: str
    tokens: int
    temperature: float
    seed: int

    def describe(self) -> dict[str, Any]:
        """As a report states it."""
        return {
            "model": self.model,
            "documents": len(self.documents),
            "tokens": self.tokens,
            "temperature": self.temperature,
            "seed": self.seed,
        }


def generate_text(
    model: Model,
    tokens: int,
    *,
    prompts: Sequence[Prompt] | None = None,
    temperature: float = 1.0,
    length: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> OwnText:
    """At least `tokens` tokens of texts that `model` samples, each ended by EOS or at `length`.

    See :meth:`modicum.retrofit.Calibration.generate`.
    """
    context = model.config.max_position_embeddings
    length = min(context, 512) if length is None else length
    if tokens < 1:
        raise InvalidArgument(f"{_OP} tokens: expected at least 1, got {tokens}")
    if not temperature > 0:
        raise InvalidArgument(f"{_OP} temperature: expected more than 0, got {temperature}")
    if length > context:
        raise ContextOverflow(f"{_OP} length: expected at most the context, {context}, got {length}")
    starts = _starts(model, prompts)
    longest = max(map(len, starts))
    if length <= longest:
        raise InvalidArgument(
            f"{_OP} length: expected more than the {longest} tokens that a text begins with, got {length}"
        )
    documents: list[npt.NDArray[np.int32]] = []
    rng, done = np.random.default_rng(seed), 0
    while done < tokens:
        group = [starts[(len(documents) + i) % len(starts)] for i in range(_BRANCHES)]
        for ids in _sample(model, group, length, temperature, rng):
            if done < tokens:
                documents.append(np.array(ids, dtype=np.int32))
                done += len(ids)
        if progress is not None and progress("own text", min(done, tokens), tokens) is False:
            raise Cancelled(f"{_OP} sampling: stopped after {done} of {tokens} tokens")
    return OwnText(documents, model.fingerprint, done, temperature, seed)


def _starts(model: Model, prompts: Sequence[Prompt] | None) -> list[list[int]]:
    if prompts is not None:
        if isinstance(prompts, str) or not len(prompts):
            raise InvalidArgument(f"{_OP} prompts: expected a list of prompts, got {prompts!r}")
        starts = [
            model.tokenizer.encode(prompt) if isinstance(prompt, str) else [int(i) for i in prompt]
            for prompt in prompts
        ]
        if not all(starts):
            raise InvalidArgument(f"{_OP} prompts: expected at least one token each, got an empty one")
        return starts
    if model.config.bos_token_id is None:
        raise InvalidArgument(f"{_OP} {model.path}: expected a model with a BOS token; pass prompts")
    return [[model.config.bos_token_id]]


def _sample(
    model: Model,
    starts: Sequence[Sequence[int]],
    length: int,
    temperature: float,
    rng: np.random.Generator,
) -> list[list[int]]:
    """One text for each of `starts`, which grow together until each met EOS or has `length` tokens."""
    root, bos = model.tree(), model.config.bos_token_id
    # Some models were taught no EOS; after a text they begin the next one.
    stops = {*model.config.eos_token_ids, *([] if bos is None else [bos])}
    texts = [list(start) for start in starts]
    # Branches that begin alike share what they begin with.
    first: dict[tuple[int, ...], Branch] = {}
    for start in starts:
        first.setdefault(tuple(start), root.extend(start) if tuple(start) not in first else root)
    leaves = [first[tuple(start)] for start in starts]
    growing = list(range(len(starts)))
    while growing:
        scores = _core.logits(leaves)
        # A row's draw does not depend on which others still grow.
        draws = rng.gumbel(size=(len(starts), scores.shape[1]))
        chosen = [
            int(np.argmax(warp(row, temperature=temperature) + draws[i]))
            for i, row in zip(growing, scores, strict=True)
        ]
        for i, token in zip(growing, chosen, strict=True):
            texts[i].append(token)
        more = [
            (i, leaf, token)
            for i, leaf, token in zip(growing, leaves, chosen, strict=True)
            if token not in stops and len(texts[i]) < length
        ]
        growing = [i for i, _, _ in more]
        leaves = _core.extend([(leaf, [token]) for _, leaf, token in more]) if more else []
    return [text[:-1] if text[-1] == bos else text for text in texts]
