"""How near a model is to the one that it was made from, on text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from modicum import _core
from modicum._core import InvalidArgument
from modicum.model import Model, Progress

__all__ = ["Comparison", "Perplexity", "compare", "perplexity"]

Sequences = npt.NDArray[np.integer[Any]] | Sequence[Sequence[int]]


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts the tokens of sequences from those before them in their sequence.

    Attributes
    ----------
    tokens : that were predicted: all of a sequence but its first.
    loss : mean negative log-likelihood of a token, in nats.
    loss_standard_error : of `loss`, over sequences; None with one of them.
    """

    sequences: int
    tokens: int
    loss: float
    loss_standard_error: float | None

    @property
    def value(self) -> float:
        """exp(loss): as if the model chose among so many equally likely tokens; inf above 1.8e308."""
        return math.exp(self.loss) if self.loss < 709.7 else math.inf

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**asdict(self), "perplexity": self.value}

    def __str__(self) -> str:
        error = self.loss_standard_error
        spread = "" if error is None else f" ± {self.value * error:.2g}"
        return f"perplexity {self.value:.4g}{spread} over {self.tokens} tokens in {self.sequences} sequences"


@dataclass(frozen=True)
class Comparison:
    """What a student lost of its teacher, over the same tokens of both.

    Attributes
    ----------
    loss_change_standard_error : of ``student.loss - teacher.loss`` over sequences; far below what either
        alone has, since hard text is hard for both. Like the other standard errors None with one sequence.
    kl : mean over tokens of KL(teacher ‖ student) of the next token's distribution, in nats.
    kl_95 : 95 % of the tokens have this or less.
    top1_agreement : share of tokens where both find the same next token likeliest.
    """

    teacher: Perplexity
    student: Perplexity
    loss_change_standard_error: float | None
    kl: float
    kl_standard_error: float | None
    kl_95: float
    kl_max: float
    top1_agreement: float

    @property
    def perplexity_ratio(self) -> float:
        """Of the student to the teacher: 1.02 is 2 % worse; inf where it is beyond a float."""
        change = self.student.loss - self.teacher.loss
        return math.exp(change) if change < 709.7 else math.inf

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        facts = asdict(self)
        facts |= {"teacher": self.teacher.to_dict(), "student": self.student.to_dict()}
        return {**facts, "perplexity_ratio": self.perplexity_ratio}

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> Comparison:
        """What `to_dict` wrote."""
        own = {name: facts[name] for name in cls.__dataclass_fields__}
        for name in ("teacher", "student"):
            own[name] = Perplexity(**{key: facts[name][key] for key in Perplexity.__dataclass_fields__})
        return cls(**own)

    def __str__(self) -> str:
        error = "" if self.kl_standard_error is None else f" ± {self.kl_standard_error:.2g}"
        return (
            f"perplexity {self.teacher.value:.4g} -> {self.student.value:.4g} "
            f"({100 * (self.perplexity_ratio - 1):+.2f} %), KL {self.kl:.4g}{error} "
            f"(95 %: {self.kl_95:.3g}, largest: {self.kl_max:.3g}), "
            f"same likeliest token for {100 * self.top1_agreement:.1f} % of {self.student.tokens} tokens"
        )


def compare(
    teacher: Model, student: Model, sequences: Sequences, *, progress: Progress | None = None
) -> Comparison:
    """Reads `sequences` once with both models and compares what they predict.

    Bit-identical whatever the number of threads; a model beside itself has a KL of exactly 0. Memory does not
    grow with the vocabulary, and with the number of tokens by 25 bytes each.

    Parameters
    ----------
    sequences : token ids, int [sequences, length], read from their first token on, each by itself: begin them
        with BOS where the models are used with one.
    progress : called with (stage, tokens done, tokens in all); returning False stops.

    Raises
    ------
    InvalidArgument
        For models of different vocabularies, sequences of fewer than two tokens, a token outside the
        vocabulary, and logits that are not finite.
    ContextOverflow
        Where length - 1 is more than the context of either.
    Cancelled
    """
    facts = _core.compare(teacher._core, student._core, _ids(sequences), progress=progress)
    facts |= {name: Perplexity(**facts[name]) for name in ("teacher", "student")}
    return Comparison(**facts)


def perplexity(model: Model, sequences: Sequences, *, progress: Progress | None = None) -> Perplexity:
    """The perplexity of one model; parameters and errors as those of :func:`compare`."""
    return Perplexity(**_core.perplexity(model._core, _ids(sequences), progress=progress))


def _ids(sequences: Sequences) -> npt.NDArray[np.int32]:
    """int32 [sequences, length]. An id beyond int32 is refused, not wrapped into the vocabulary."""
    try:
        ids = np.asarray(sequences)
    except ValueError:
        raise InvalidArgument("[compare] sequences: expected one length for all, got several") from None
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise InvalidArgument(
            f"[compare] sequences: expected integers [sequences, length], got {ids.dtype} {list(ids.shape)}"
        )
    limits = np.iinfo(np.int32)
    if ids.size and (ids.min() < limits.min or ids.max() > limits.max):
        raise InvalidArgument(
            "[compare] sequences: expected token ids of the vocabulary, got one beyond int32"
        )
    return ids.astype(np.int32, copy=False)
