"""What perplexity does not show: whether a shrunk model still copies, finds and adds as it did before.

Each probe asks two models the same questions and says what the first one's chance level is, so that a model
that never could do it is not reported as unharmed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from modicum._core import ContextOverflow, InvalidArgument, Unsupported
from modicum.calibration import bos_tokens
from modicum.choose import LabelTrie
from modicum.model import Model

__all__ = ["Probe", "Probes", "Score", "arithmetic", "passkey", "recall", "run"]

_FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
_CHOICES = 10  # keys, the right one among them


@dataclass(frozen=True)
class Score:
    """How often the likeliest was right, and what the right one cost.

    Attributes
    ----------
    accuracy : share of items.
    nll : mean negative log-likelihood of the right one, in nats per item.
    """

    accuracy: float
    nll: float


@dataclass(frozen=True)
class Probe:
    """One probe of two models.

    Attributes
    ----------
    name : "recall", "passkey" or "arithmetic".
    items : tokens or questions that were scored, the same for both models.
    chance : what needs no such ability: see the probe's function.
    lost, gained : items that only the first, or only the second model got right.
    """

    name: str
    items: int
    before: Score
    after: Score
    chance: Score
    lost: int
    gained: int

    @property
    def able(self) -> bool:
        """Whether the first model beats chance by three standard errors; else the probe says nothing."""
        p, q = self.before.accuracy, self.chance.accuracy
        return p - q > 3 * math.sqrt((p * (1 - p) + q * (1 - q)) / self.items)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"schema": "modicum.retrofit.probe/1", **asdict(self), "able": self.able}

    def __str__(self) -> str:
        told = (
            f"{self.name}: accuracy {self.before.accuracy:.3f} before, {self.after.accuracy:.3f} after, "
            f"{self.chance.accuracy:.3f} by chance; nll {self.before.nll:.3f}, {self.after.nll:.3f}, "
            f"{self.chance.nll:.3f}; {self.items} items, {self.lost} lost, {self.gained} gained"
        )
        return told if self.able else told + "; no better than chance before, so this shows nothing"


@dataclass(frozen=True)
class Probes:
    """All probes of two models.

    Attributes
    ----------
    refused : why, by the name of a probe that these models cannot be asked.
    """

    results: list[Probe]
    refused: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "schema": "modicum.retrofit.probes/1",
            "results": [probe.to_dict() for probe in self.results],
            "refused": self.refused,
        }

    def __str__(self) -> str:
        lines = [str(probe) for probe in self.results]
        return "\n".join(lines + [f"{name}: not asked: {why}" for name, why in self.refused.items()])


def run(before: Model, after: Model, *, seed: int = 0) -> Probes:
    """Every probe at its defaults, which take seconds on small models.

    Raises
    ------
    InvalidArgument
        Where the models do not have the same tokenizer.
    """
    results, refused = [], {}
    probes: dict[str, Callable[..., Probe]] = {
        "recall": recall,
        "passkey": passkey,
        "arithmetic": arithmetic,
    }
    for name, probe in probes.items():
        try:
            results.append(probe(before, after, seed=seed))
        except Unsupported as error:
            refused[name] = str(error)
    return Probes(results, refused)


def recall(before: Model, after: Model, *, strings: int = 16, length: int = 32, seed: int = 0) -> Probe:
    """Whether a random string of tokens is known when it comes again in the context (induction heads).

    A sequence is BOS, `length` tokens drawn uniformly, and these again. Scored are the tokens of the second
    occurrence but its first one, which nothing foretells. Chance is what `before` scores on the same tokens
    of the first occurrence, where there is nothing to copy.

    Parameters
    ----------
    strings : sequences.
    length : tokens of a string, at least 2.

    Raises
    ------
    InvalidArgument
        Where the models do not have the same vocabulary, and for sizes that make no sense.
    ContextOverflow
        Where twice the length does not fit a model's context.
    """
    _check_counts("recall", strings=(strings, 1), length=(length, 2))
    _check_same(before, after)
    begin = bos_tokens(before)
    _check_context("recall", (before, after), len(begin) + 2 * length)
    rng, alphabet = np.random.default_rng(seed), _ordinary_tokens(before)
    marks: dict[str, list[Any]] = {"before": [], "after": [], "chance": []}
    for _ in range(strings):
        string = rng.choice(alphabet, size=length).tolist()
        ids = [*begin, *string, *string]
        # The token at position p is foretold by the logits at p - 1.
        first, second = len(begin) + 1, len(begin) + length + 1
        logits = before.logits(ids[:-1])
        marks["chance"].append(_score(logits[first - 1 : first + length - 2], string[1:]))
        marks["before"].append(_score(logits[second - 1 :], string[1:]))
        marks["after"].append(_score(after.logits(ids[:-1])[second - 1 :], string[1:]))
    joined = {name: np.concatenate(parts, axis=1) for name, parts in marks.items()}
    return _compare("recall", joined["before"], joined["after"], _mean(joined["chance"]))


def passkey(before: Model, after: Model, *, texts: int = 16, tokens: int = 256, seed: int = 0) -> Probe:
    """Whether a number said once in a long text is found again (Mohtashami and Jaggi 2023, arXiv:2305.16300).

    The likelihood of the right key of five digits after the question, against nine wrong ones: `nll` is that
    of the right one among these ten. Chance is one in ten.

    Parameters
    ----------
    texts : with a key each, at a place that the seed chooses.
    tokens : of a text at most, the question included; less where a context is shorter.

    Raises
    ------
    Unsupported
        Where the tokenizer does not hold the text and its digits, or the context is too short.
    """
    _check_counts("passkey", texts=(texts, 1), tokens=(tokens, 1))
    _check_same(before, after)
    rng = np.random.default_rng(seed)
    room = min(tokens, *(model.config.max_position_embeddings for model in (before, after)))
    questions = []
    for _ in range(texts):
        keys = [str(key) for key in rng.choice(np.arange(10_000, 100_000), size=_CHOICES, replace=False)]
        fillers = _fillers(before, keys[0], room)
        place = int(rng.integers(fillers + 1))
        questions.append((_passkey_text(keys[0], place, fillers - place), [f" {key}." for key in keys]))
    return _ask("passkey", before, after, questions)


def arithmetic(
    before: Model,
    after: Model,
    *,
    problems: int = 40,
    digits: int = 1,
    shots: int = 4,
    choices: int = 5,
    seed: int = 0,
) -> Probe:
    """Whether sums come out right after some examples: pruned depth loses this first.

    The likelihood of the right sum against wrong ones nearby (off by one, two or ten), each ended by a line
    break: `nll` is that of the right one among these. Chance is one in `choices`.

    Parameters
    ----------
    digits : of each summand.
    shots : solved examples before the question.
    choices : sums to choose from, the right one among them; at most 6.

    Raises
    ------
    Unsupported
        Where the tokenizer does not hold digits.
    """
    _check_counts(
        "arithmetic", problems=(problems, 1), digits=(digits, 1), shots=(shots, 0), choices=(choices, 2)
    )
    if choices > 6:
        raise InvalidArgument(f"[arithmetic] choices: expected at most 6, got {choices}")
    _check_same(before, after)
    rng, least, most = np.random.default_rng(seed), 10 ** (digits - 1), 10**digits
    questions = []
    for _ in range(problems):
        pairs = rng.integers(least, most, size=(shots + 1, 2)).tolist()
        lines = [f"{a} + {b} = {a + b}\n" for a, b in pairs[:-1]]
        a, b = pairs[-1]
        wrong = [a + b + off for off in (1, -1, 2, -2, 10, -10, 3) if a + b + off >= 0]
        answers = [a + b, *rng.choice(wrong, size=choices - 1, replace=False).tolist()]
        questions.append(("".join(lines) + f"{a} + {b} =", [f" {answer}\n" for answer in answers]))
    return _ask("arithmetic", before, after, questions)


def _ask(name: str, before: Model, after: Model, questions: Sequence[tuple[str, Sequence[str]]]) -> Probe:
    """Both models choose; the first answer of each question is the right one."""
    begin = bos_tokens(before)
    marks: dict[str, list[npt.NDArray[np.float64]]] = {"before": [], "after": []}
    for text, answers in questions:
        prompt, labels = _split(name, before, text, answers)
        trie = LabelTrie(labels, before.config.eos_token_ids)
        for which, model in (("before", before), ("after", after)):
            scores = trie.scores(model.tree().extend([*begin, *prompt]))
            scores -= np.logaddexp.reduce(scores)
            # A tie is no knowledge.
            right = scores[0] > scores[1:].max()
            marks[which].append(np.array([[float(right)], [-scores[0]]]))
    choices = len(questions[0][1])
    joined = {which: np.concatenate(parts, axis=1) for which, parts in marks.items()}
    return _compare(name, joined["before"], joined["after"], Score(1 / choices, math.log(choices)))


def _split(name: str, model: Model, text: str, answers: Sequence[str]) -> tuple[list[int], list[list[int]]]:
    """Tokens of text and answers as they are written together: a token may reach across the seam."""
    tokenizer = model.tokenizer
    whole = [tokenizer.encode(text + answer, add_special_tokens=False) for answer in answers]
    for ids, answer in zip(whole, answers, strict=True):
        if tokenizer.decode(ids).strip() != (text + answer).strip():
            raise Unsupported(
                f"[{name}] {model.path}: expected a tokenizer that holds {answer.strip()!r} after its "
                "question, got one that gives other text back"
            )
    shared = 0
    while shared < min(map(len, whole)) - 1 and len({ids[shared] for ids in whole}) == 1:
        shared += 1
    return whole[0][:shared], [ids[shared:] for ids in whole]


def _passkey_text(key: str, ahead: int, behind: int) -> str:
    hidden = f"The pass key is {key}. Remember it. {key} is the pass key."
    return "\n".join(
        [*[_FILLER] * ahead, hidden, *[_FILLER] * behind, "What is the pass key? The pass key is"]
    )


def _fillers(model: Model, key: str, room: int) -> int:
    """How many lines of filler leave the text and its answer within `room` tokens."""

    def size(lines: int) -> int:
        ids = model.tokenizer.encode(_passkey_text(key, lines, 0) + f" {key}.", add_special_tokens=False)
        return len(ids) + 1  # BOS

    if size(1) > room:
        raise Unsupported(f"[passkey] {model.path}: expected room for {size(1)} tokens of text, got {room}")
    lines = 1
    while size(lines + 1) <= room:
        lines += 1
    return lines


def _score(logits: npt.NDArray[np.float32], right: Sequence[int]) -> npt.NDArray[np.float64]:
    """Whether each next token was the likeliest, and its nll: float64 [2, tokens]."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    chosen = wide[np.arange(len(right)), right]
    return np.stack([wide.argmax(axis=1) == right, np.log(np.exp(wide).sum(axis=1)) - chosen])


def _mean(marks: npt.NDArray[np.float64]) -> Score:
    return Score(float(marks[0].mean()), float(marks[1].mean()))


def _compare(
    name: str, before: npt.NDArray[np.float64], after: npt.NDArray[np.float64], chance: Score
) -> Probe:
    return Probe(
        name=name,
        items=before.shape[1],
        before=_mean(before),
        after=_mean(after),
        chance=chance,
        lost=int(((before[0] == 1) & (after[0] == 0)).sum()),
        gained=int(((before[0] == 0) & (after[0] == 1)).sum()),
    )


def _ordinary_tokens(model: Model) -> npt.NDArray[np.int64]:
    """Every token of the vocabulary but special ones."""
    has_text = (model.path / "tokenizer.json").exists()
    known = min(len(model.tokenizer), model.config.vocab_size) if has_text else model.config.vocab_size
    special = {model.config.bos_token_id, *model.config.eos_token_ids}
    return np.array(
        [i for i in range(known) if i not in special and not (has_text and model.tokenizer.is_special(i))]
    )


def _check_counts(name: str, **counts: tuple[int, int]) -> None:
    for what, (count, least) in counts.items():
        if count < least:
            raise InvalidArgument(f"[{name}] {what}: expected at least {least}, got {count}")


def _check_context(name: str, models: Sequence[Model], tokens: int) -> None:
    context = min(model.config.max_position_embeddings for model in models)
    if tokens > context:
        raise ContextOverflow(f"[{name}] length: expected {tokens} tokens within the context, {context}")


def _check_same(before: Model, after: Model) -> None:
    """The same ids must mean the same to both."""
    have = [(m.path / "tokenizer.json").exists() for m in (before, after)]
    prints = [m.tokenizer.fingerprint if has else "" for m, has in zip((before, after), have, strict=True)]
    sizes = [m.config.vocab_size for m in (before, after)]
    if sizes[0] != sizes[1] or (all(have) and prints[0] != prints[1]):
        raise InvalidArgument(
            f"[probes] models: expected one tokenizer, got {before.path} with {sizes[0]} tokens "
            f"and {after.path} with {sizes[1]}, or others"
        )
