"""How a model behaves, by likelihood alone: nothing is sampled and nobody judges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from modicum import _core
from modicum._core import InvalidArgument
from modicum.calibration import bos_tokens, leading_windows
from modicum.choose import LabelTrie
from modicum.compare import compare, perplexity
from modicum.model import Model, Progress
from modicum.tune.guard_set import Choice, GuardSet, Reply

__all__ = ["Item", "Manners", "measure_manners"]

_WINDOW = 128  # tokens of neutral text that are read together


@dataclass(frozen=True)
class Item:
    """One entry of a set and what it gave.

    Attributes
    ----------
    kind : "refusal", "format" or "reply".
    value : of a choice, the log-odds of what is wanted against what is not, in nats; of a reply, the
        log-probability that the turn ends after it.
    """

    kind: str
    language: str
    prompt: str
    value: float


@dataclass(frozen=True)
class Manners:
    """What was measured of one model.

    Attributes
    ----------
    turns : what its chat template makes of a conversation, with the special tokens in it; "" without one.
    items : of the set's entries.
    kl : mean KL(reference ‖ model) of the next token on neutral text, nats; None where their tokens differ.
    neutral_loss : nats a byte of the neutral text.
    domain_loss : nats a token of the domain's text; None without one.
    """

    turns: str
    items: list[Item] = field(repr=False)
    kl: float | None = None
    neutral_loss: float | None = None
    domain_loss: float | None = None

    def values(self, kind: str, language: str | None = None) -> npt.NDArray[np.float64]:
        """Of the items of one kind (and language), in the order of the set."""
        return np.array(
            [i.value for i in self.items if i.kind == kind and language in (None, i.language)], np.float64
        )

    @property
    def domain_perplexity(self) -> float | None:
        return None if self.domain_loss is None else math.exp(min(self.domain_loss, 700.0))

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def measure_manners(
    model: Model,
    checks: GuardSet,
    *,
    reference: Model | None = None,
    domain: npt.NDArray[np.int32] | None = None,
    progress: Progress | None = None,
) -> Manners:
    """What `checks` ask of a model.

    Parameters
    ----------
    reference : the instruct model, for the divergence on neutral text.
    domain : token ids int32 [sequences, length] of text that the model is to know.
    """
    entries: list[tuple[str, Choice | Reply]] = [
        *(("refusal", entry) for entry in checks.refusals),
        *(("format", entry) for entry in checks.formats),
        *(("reply", entry) for entry in checks.replies),
    ]
    items = []
    for at, (kind, entry) in enumerate(entries):
        if progress is not None and progress("guard", at, len(entries)) is False:
            raise _core.Cancelled("[guard] stopped by the caller")
        value = _margin(model, entry) if isinstance(entry, Choice) else _ending(model, entry)
        items.append(Item(kind, entry.language, entry.prompt, value))
    kl, neutral = _neutral(model, checks.neutral, reference)
    return Manners(
        turns=_turns(model),
        items=items,
        kl=kl,
        neutral_loss=neutral,
        domain_loss=None if domain is None else perplexity(model, domain).loss,
    )


def same_tokens(one: Model, other: Model) -> bool:
    """Whether equal ids are equal tokens in both."""
    a, b = one.tokenizer, other.tokenizer
    if one.config.vocab_size != other.config.vocab_size:
        return False
    if a.fingerprint == b.fingerprint:
        return True
    count = max(len(a), len(b))
    return all(a.token_of(i) == b.token_of(i) for i in range(count))


def _prompt(model: Model, entry: Choice | Reply) -> list[int]:
    system = [{"role": "system", "content": entry.system}] if entry.system else []
    return model.chat_prompt([*system, {"role": "user", "content": entry.prompt}])


def _margin(model: Model, choice: Choice) -> float:
    def encode(text: str) -> list[int]:
        return model.tokenizer.encode(text, add_special_tokens=False)

    texts = [*choice.wanted, *choice.unwanted]
    trie = LabelTrie([encode(text) for text in texts], model.config.eos_token_ids)
    scores = trie.scores(model.tree().extend(_prompt(model, choice)))
    split = len(choice.wanted)
    return float(np.logaddexp.reduce(scores[:split]) - np.logaddexp.reduce(scores[split:]))


def _ending(model: Model, reply: Reply) -> float:
    """Log-probability that the turn ends after the answer."""
    ends = list(model.config.eos_token_ids)
    if not ends:
        raise InvalidArgument(f"[guard] {model.path}: expected a token that ends a turn, got none")
    answer = model.tokenizer.encode(reply.answer, add_special_tokens=False)
    logits = model.tree().extend([*_prompt(model, reply), *answer]).logits().astype(np.float64)
    return float(np.logaddexp.reduce(logits[ends]) - np.logaddexp.reduce(logits))


def _neutral(
    model: Model, texts: Sequence[str], reference: Model | None
) -> tuple[float | None, float | None]:
    if not texts:
        return None, None
    text = "\n\n".join(texts)
    ids = np.array(model.tokenizer.encode(text, add_special_tokens=False), np.int32)
    windows = leading_windows(model, ids, tokens=len(ids), length=_WINDOW)
    share = windows.shape[0] * (windows.shape[1] - len(bos_tokens(model))) / len(ids)  # whole windows hold
    if reference is not None and same_tokens(model, reference):
        found = compare(reference, model, windows)
        return found.kl, found.student.loss * found.student.tokens / (share * len(text.encode()))
    own = perplexity(model, windows)
    return None, own.loss * own.tokens / (share * len(text.encode()))


def _turns(model: Model) -> str:
    """A conversation as the chat template renders it, special tokens set apart."""
    if model.chat_template is None:
        return ""
    conversation = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Good morning."},
        {"role": "user", "content": "Thanks"},
    ]
    ids = model.chat_prompt(conversation)
    tokenizer = model.tokenizer
    return " ".join(
        f"<{tokenizer.token_of(i)}>" if tokenizer.is_special(i) else str(tokenizer.token_of(i)) for i in ids
    )
