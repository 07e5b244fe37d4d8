# SPDX-License-Identifier: Apache-2.0
"""Any transformers model as the step of a search: ``pip install modicum[interop]`` brings what it needs.

A search asks a step for the logits after a prompt, then for those after one more token on each of its rows:

>>> step = TransformersStep(hf_model)                       # AutoModelForCausalLM…, in eval mode
>>> logits = step(None, prompt_ids)                         # [1, vocabulary]
>>> logits = step(np.array([0, 0]), np.array([17, 4]))      # row i continues row parents[i] with tokens[i]
>>> step.tier, step.notes, step.stats
('tree', (), StepStats(rows=2, tokens_held=34, tokens_peak=34, kv_bytes=…, kv_bytes_peak=…))

The prompt is read once, whatever the number of rows. What happens afterwards depends on the model:

=============  ============================================  =======================================
tier           for                                           keys and values held
=============  ============================================  =======================================
``tree``       models whose attention goes through           of the prompt once, of each shared
               transformers' attention interface with        token once; those of a row that is not
               sdpa or eager: Llama, Qwen, Mistral,          continued go at once
               Gemma, GPT-2, …
``batch``      other models with a cache that can be         of every row, the prompt's too: this
               reordered: Mamba, LFM2, Bloom, …              saves time, not memory
``recompute``  models without such a cache                   none: every row is read anew each time
=============  ============================================  =======================================

The model itself decides, not its name: at construction a few branches of random tokens are stepped and
compared with plain passes over each path. A tier that deviates is left for the next, with a warning and a
note. The model's weights and configuration stay as they are.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from modicum._core import Error, Unsupported
from modicum._transformers_tiers import TIERS, Forward, Ids, SelfCheck, Tier, TierName, invalid, make_tier

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

__all__ = ["StepStats", "TransformersStep"]


@dataclass(frozen=True)
class StepStats:
    """What a step holds now and has held at most since the last `reset`."""

    rows: int
    """Rows of the last call."""
    tokens_held: int
    """Tokens whose keys and values (or whose ids, where nothing else is kept) are held."""
    tokens_peak: int
    kv_bytes: int
    """Bytes of the cache, with what it has in reserve."""
    kv_bytes_peak: int


class TransformersStep:
    """The logits of a transformers model, row by row, as a search asks for them.

    Parameters
    ----------
    model : a causal language model of transformers, in eval mode, on any device. It stays as it is, and may
        be used otherwise between two calls.
    tier : how rows share what is cached, see the module. ``"auto"`` takes the first that the model passes.

    Raises
    ------
    InvalidArgument
        For something that is no model, a model in training mode, or an unknown tier.
    Unsupported
        Where torch or transformers is missing; for encoder-decoder models; for a demanded `tier` that the
        model does not pass.
    """

    gives_logits = True
    """The rows are logits: a search normalises them."""

    def __init__(self, model: PreTrainedModel, *, tier: Literal["auto"] | TierName = "auto") -> None:
        if tier not in ("auto", *TIERS):
            raise invalid("tier", f"auto, {', '.join(TIERS)}", repr(tier))
        self._forward = Forward(model)
        self._rows = 0
        self._length = 0
        self._tokens_peak = self._kv_bytes_peak = 0
        notes: list[str] = []
        check = SelfCheck(self._forward)
        self.vocabulary_size: int = check.vocabulary_size
        self._tier = _choose(self._forward, check, TIERS if tier == "auto" else (tier,), notes)
        self.notes: tuple[str, ...] = tuple(notes)
        """Which tiers the model did not pass, and why."""
        for note in notes:
            warnings.warn(note, stacklevel=2)

    def __call__(
        self, parents: npt.ArrayLike | None, tokens: npt.ArrayLike | torch.Tensor
    ) -> npt.NDArray[np.float32]:
        """Logits after each row's new token, float32 [rows, vocabulary].

        Parameters
        ----------
        parents : integers [rows], each a row of the previous call; None begins anew. What no entry names is
            forgotten, and its memory is free for the new rows. The number of rows may change.
        tokens : integers [rows]: what each row's parent is continued with. With `parents` None, the prompt.

        Raises
        ------
        InvalidArgument
            For parents that are no rows, tokens outside the vocabulary, an empty prompt. The step stays as it
            was.
        ContextOverflow
            For more tokens than a model with learned positions has positions. The step stays as it was.
        FormatError
            For a model that returns NaN, +inf or another shape. After this, and after whatever else the model
            raises, the step is empty and waits for a prompt.
        """
        ids = self._ids("tokens" if parents is not None else "prompt", tokens, self._forward.tokens_known)
        rows = None if parents is None else self._ids("parents", parents, self._rows)
        if rows is not None and rows.shape != ids.shape:
            raise invalid("tokens", f"{len(rows)}, one a parent", f"{len(ids)}")
        length = len(ids) if rows is None else self._length + 1
        self._forward.check_length(length)
        try:
            if rows is None:
                self._tier.reset()
                logits = self._run(lambda: self._tier.start(ids), 1)
            else:
                logits = self._run(lambda: self._tier.advance(rows, ids), len(rows))
        except BaseException:  # a half-written cache answers wrongly, whatever has stopped it
            self._forget()
            raise
        self._rows, self._length = len(logits), length
        self._tokens_peak = max(self._tokens_peak, self._tier.tokens_held)
        self._kv_bytes_peak = max(self._kv_bytes_peak, self._tier.kv_bytes)
        return logits

    @property
    def tier(self) -> TierName:
        """How rows share what is cached: ``tree``, ``batch`` or ``recompute``."""
        return self._tier.name

    @property
    def stats(self) -> StepStats:
        """Tokens and bytes held."""
        return StepStats(
            self._rows,
            self._tier.tokens_held,
            self._tokens_peak,
            self._tier.kv_bytes,
            self._kv_bytes_peak,
        )

    def reset(self) -> None:
        """Forgets everything and gives its memory back."""
        self._forget()
        self._tokens_peak = self._kv_bytes_peak = 0

    def __repr__(self) -> str:
        return f"TransformersStep({type(self._forward.model).__name__}, tier={self.tier!r})"

    def _forget(self) -> None:
        self._tier.reset()
        self._rows = self._length = 0

    def _run(self, compute: Any, rows: int) -> npt.NDArray[np.float32]:
        with self._forward.torch.inference_mode():
            return self._forward.array(compute(), rows, self.vocabulary_size)

    def _ids(self, what: str, values: Any, limit: int) -> Ids:
        if what == "parents" and not limit:
            raise invalid("parents", "None and a prompt first", "parents of no rows")
        if isinstance(values, self._forward.torch.Tensor):
            values = values.cpu().numpy()
        try:
            array = np.asarray(values)
        except ValueError:  # rows of different lengths
            raise invalid(what, "integers [n]", "a ragged list") from None
        if array.ndim != 1 or array.size == 0:
            raise invalid(what, "integers [n], n at least 1", f"shape {list(array.shape)}")
        if array.dtype.kind not in "iu":
            raise invalid(what, "integers", str(array.dtype))
        outside = array[(array < 0) | (array >= limit)]
        if outside.size:
            raise invalid(what, f"0 to {limit - 1}", f"{outside[0]}")
        return array.astype(np.int64, copy=False)


def _choose(forward: Forward, check: SelfCheck, names: tuple[TierName, ...], notes: list[str]) -> Tier:
    """The first of the tiers that passes; why the others did not goes to `notes`."""
    for name in names:
        try:
            tier = make_tier(name, forward)
            check.run(tier)
            return tier
        # A model may refuse what a tier does to it with any error at all; the next tier asks less of it.
        except Exception as error:
            if name == names[-1]:
                raise _refusal(name, error) from error
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            notes.append(_fallback(type(forward.model).__name__, name, reason))
    raise AssertionError("names holds at least one tier")


def _refusal(tier: str, error: Exception) -> Error:
    if isinstance(error, Error):
        return error
    return Unsupported(
        f"[transformers_step] tier: expected a model that can be stepped as {tier}, got "
        f"{type(error).__name__}: {error}"
    )


def _fallback(model: str, tier: str, reason: str) -> str:
    then = {
        "tree": "its rows are cached one by one, which saves time but no memory",
        "batch": "every row is read from its beginning at every step, which is slow",
    }[tier]
    return f"[transformers_step] {model} cannot be stepped as {tier}: {then} ({reason})"
